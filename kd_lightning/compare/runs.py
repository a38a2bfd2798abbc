"""Runs to compare, from their folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_lightning.compare.settings import Config
from kd_lightning.errors import UserError
from kd_lightning.runs.folder import RunFolder

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
    """

    source: str
    folder: RunFolder | None
    name: str
    seed: int
    status: str
    started: str
    config: Config
    metrics: Mapping[str, float]
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher_sources: Sequence[Mapping[str, Any]] = ()


def display_name(config: Config, folder_name: str, job_type: str) -> str:
    """The name that the user gave the run, or its folder's, or the kind of run."""
    given = config.get("run", {}).get("name")
    if given:
        return str(given)
    # Folders of `kd reproduce` are named by a hash, which would tell a reader nothing.
    is_hash = re.fullmatch("[0-9a-f]{16}", folder_name) is not None
    return job_type if is_hash else folder_name


def read_run(source: str) -> Run:
    """Read the run of a folder.

    Raises:
        UserError: if it is not a run's folder, or if a file in it is damaged.
    """
    # Messages show the path as the user wrote it; paths in the config need the absolute one.
    folder = RunFolder(Path(source).resolve())
    record = folder.record
    if not record:
        if folder.record_path.exists():
            raise UserError(f"{source}: run.json is damaged")
        raise UserError(f"{source} is not a run: it has no run.json; give folders of runs")
    has_metrics = isinstance(record.get("metrics"), dict)
    if not has_metrics or not isinstance(record.get("seed"), int):
        raise UserError(f"{source}: another program or version wrote run.json")
    try:
        config = folder.config
    except UserError as error:
        raise UserError(
            f"{source}: config.yaml is missing or damaged; this folder cannot be compared"
        ) from error
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
    )
