"""Runs to compare: from their folders, or from an experiment's results.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import UserError
from kd_lightning.experiments.spec import find
from kd_lightning.runs.folder import read_json


@dataclass
class Run:
    """One run with one seed.

    Attributes:
        where: its folder as it was given, or its path in W&B; for messages.
        folder: where it is or was kept; None where nobody knows.
        name: for a label; empty where its folder is named by a hash.
        seed: its seed.
        status: "finished", or how else it stands.
        started: when, as ISO text.
        config: resolved.
        metrics: as measured last.
        data: what its datamodule says of the data.
        teacher: its teacher's sources.
    """

    where: str
    folder: Path | None
    name: str
    seed: int
    status: str
    started: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher: Sequence[Mapping[str, Any]] = ()


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What of a record or a summary is a metric."""
    wanted = {
        n: v for n, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    return {n: float(v) for n, v in wanted.items() if not n.startswith("_")}


def short_name(config: Mapping[str, Any], folder: str, job_type: str) -> str:
    """What the user called the run, else its folder, else (a hash) what kind of run it is."""
    return str(
        config.get("run", {}).get("name")
        or (job_type if re.fullmatch("[0-9a-f]{16}", folder) else folder)
    )


def is_cache(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def read_run(where: str) -> Run:
    """The run of a folder.

    Raises:
        UserError: where it is none, or is damaged.
    """
    folder = Path(where)
    record = read_json(folder / "run.json")
    if not record:
        damaged = (folder / "run.json").exists()
        raise UserError(
            f"{where}: {'run.json is damaged' if damaged else 'no run: it has no run.json; give folders of runs'}"
        )
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{where}: its config.yaml is missing or damaged, so that nobody knows what it is a run of"
        ) from error
    if (
        not isinstance(config, dict)
        or not isinstance(record.get("metrics"), dict)
        or not isinstance(record.get("seed"), int)
    ):
        raise UserError(f"{where}: its run.json or config.yaml is of another program or version")
    return Run(
        where,
        folder.resolve(),
        short_name(config, folder.resolve().name, str(record.get("job_type"))),
        record["seed"],
        str(record.get("status")),
        str(record.get("started")),
        config,
        numbers(record["metrics"]),
        record.get("data") or {},
        record.get("teacher") or [],
    )


def results_file(name: str) -> Path | None:
    """The results.json of an experiment, by its name or by the folder; None where the name is a run's or nobody's."""
    path = Path(name)
    if (path / "run.json").exists():
        return None
    places = [
        path,
        path / "results.json",
        Path("runs") / name.removesuffix(".yaml") / "results.json",
    ]
    return next(
        (place for place in places if place.name == "results.json" and place.is_file()), None
    )


def read_results(path: Path) -> dict[str, Any]:
    """UserError where the file is not what `kd reproduce` writes."""
    content = read_json(path)
    try:
        for row in content["rows"]:
            row |= {
                "run": str(row["run"]),
                "metric": str(row["metric"]),
                "values": [float(value) for value in row["values"]],
            }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged; write it again with kd reproduce") from error
    return content


def unknown(name: str) -> UserError:
    """What to say of a name that is no run and has no results."""
    if Path(name).is_dir():
        return UserError(
            f"{name}: no run: it has no run.json (and no results.json); give folders of runs, such as {name}/*"
        )
    try:
        find(name)
    except UserError:
        return UserError(
            f"there is no run and no experiment {name!r}; kd list experiments names them, runs/ holds runs"
        )
    return UserError(
        f"the experiment {name} has no results yet; make them with: kd reproduce {name}"
    )
