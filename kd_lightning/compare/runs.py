"""Runs to compare, from their folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from kd_lightning.compare.settings import Config, SettingValue, digest
from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import is_code
from kd_lightning.runs.folder import RunFolder, read_json
from kd_lightning.values import Value, Values, mapping_at

FINISHED = "finished"


@dataclass
class Run:
    """One run with one seed, from its folder or from W&B.

    Attributes:
        source: the folder as the user wrote it, or the path in W&B; for messages.
        folder: the run's folder, perhaps on another machine; None if it is unknown.
        name: what labels call the run.
        seed: its seed.
        status: `finished`, or why it is not.
        started: when it started, as ISO text.
        config: its resolved config.
        metrics: the last value of each metric.
        data: the datamodule's description of the data.
        teacher_sources: where its teachers' weights came from: `path`, `sha256`, perhaps `cache`.
        origin: what decides its result besides its settings: code, versions and samples.
    """

    source: str
    folder: RunFolder | None
    name: str
    seed: int
    status: str
    started: str
    config: Config
    metrics: Mapping[str, float]
    data: Values = field(default_factory=dict)
    teacher_sources: Sequence[Values] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def display_name(config: Config, folder_name: str, job_type: str) -> str:
    """The name that the user gave the run, or its folder's, or the kind of run.

    Args:
        config: of the run.
        folder_name: of its folder.
        job_type: the kind of run.
    """
    given = mapping_at(config, "run").get("name")
    if given:
        return str(given)
    # Folders of `kd reproduce` are named by a hash, which would tell a reader nothing.
    is_hash = re.fullmatch("[0-9a-f]{16}", folder_name) is not None
    return job_type if is_hash else folder_name


def read_run(source: str) -> Run:
    """Read the run of a folder.

    Args:
        source: the folder, as the user wrote it.

    Raises:
        UserError: if it is not a run's folder, or if a file in it is damaged.
    """
    # Messages show the path as the user wrote it; paths in the config need the absolute one.
    folder = RunFolder(Path(source).resolve())
    record = folder.record
    if not record:
        if folder.record_path.exists():
            raise UserError(f"{source}: run.json is damaged")
        raise UserError(
            f"{source} is not a run: it has no run.json; give folders of runs"
        )
    _check_types(source, record)
    try:
        config = folder.config
    except UserError as error:
        raise UserError(
            f"{source}: config.yaml is missing or damaged; this folder cannot be compared"
        ) from error
    _check_config(source, config)
    return Run(
        source=source,
        folder=folder,
        name=display_name(config, folder.path.name, folder.job_type),
        seed=folder.seed,
        status=folder.status or "unknown status",
        started=folder.started,
        config=config,
        metrics=folder.metrics,
        data=folder.data,
        teacher_sources=folder.teacher_sources,
        origin=origin_of(record, read_json(folder.path / "key.json")),
    )


def _check_types(source: str, record: Values) -> None:
    """Raise a UserError if an entry of run.json is of another type than ours."""
    has_metrics = isinstance(record.get("metrics"), dict)
    if not has_metrics or not isinstance(record.get("seed"), int):
        raise UserError(f"{source}: another program or version wrote run.json")
    expected: dict[str, type] = {
        "data": dict,
        "teacher": list,
        "versions": dict,
        "data_sha256": dict,
        "task": dict,
        "commit": str,
    }
    for name, kind in expected.items():
        value = record.get(name)
        if value is not None and not isinstance(value, kind):
            raise _wrong_type(source, f"run.json: {name}", value, kind)
    # The entries are of the right types by now, or missing.
    data = mapping_at(record, "data")
    if not isinstance(data.get("samples", {}), dict):
        raise _wrong_type(source, "run.json: data.samples", data["samples"], dict)
    for entry in cast(list[Value], record.get("teacher") or []):
        if not isinstance(entry, dict):
            raise _wrong_type(source, "run.json: teacher", entry, dict)
    count = mapping_at(record, "task").get("count", "")
    if not isinstance(count, str):
        raise _wrong_type(source, "run.json: task.count", count, str)


def _check_config(source: str, config: Values) -> None:
    """Raise a UserError if a section of the config is no mapping."""
    for name in ("data", "model", "run", "trainer"):
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            raise _wrong_type(source, f"config.yaml: {name}", value, dict)


_TYPE_NAMES = {"dict": "a mapping", "list": "a list", "str": "a text"}


def _wrong_type(source: str, what: str, value: Value, expected: type) -> UserError:
    """The error for a value of another type than ours."""
    name = _TYPE_NAMES[expected.__name__]
    kind = type(value).__name__
    return UserError(f"{source}: {what} must be {name}, got {kind}")


def origin_of(record: Values, key: Values) -> dict[str, str]:
    """What decides a result besides the settings, as far as it is known.

    Args:
        record: the content of run.json.
        key: the key under which an experiment stored the run; empty for other runs. It names the
            version of each file that the run used; otherwise the commit stands for the code.
    """
    origin = {}
    code = {}
    for name, value in key.items():
        if is_code(name):
            code[name] = value
    if code:
        origin["code"] = _digest_of_texts(code)
    elif record.get("commit"):
        commit, _, dirty = str(record["commit"]).partition("-")
        parts = [commit[:8], dirty]
        origin["code"] = "-".join(filter(None, parts))
    # The key of an experiment's run holds torch's version among the settings.
    torch = mapping_at(record, "versions").get("torch")
    if torch and not code:
        origin["torch"] = str(torch)
    samples = mapping_at(record, "data_sha256")
    if samples:
        origin["samples"] = _digest_of_texts(samples)
    # Runs of earlier versions have no checksum of their samples, but these follow from them.
    data = mapping_at(record, "data")
    for name in ("mean", "std"):
        if data.get(name) is not None:
            origin[f"data.{name}"] = str(data[name])
    classes = cast(Sequence[Value], data.get("classes"))
    if classes:
        labels: list[SettingValue] = [str(label) for label in classes]
        origin["data.classes"] = digest(labels)[:8]
    return origin


def _digest_of_texts(values: Values) -> str:
    """A short hash of values as texts, in eight digits."""
    texts: dict[str, SettingValue] = {}
    for name, value in values.items():
        texts[name] = str(value)
    return digest(texts)[:8]
