"""A run's folder: creating it, writing its run.json, and reading a run back."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from kd_lightning import __version__
from kd_lightning.errors import UserError
from kd_lightning.escaping import masked_command
from kd_lightning.files import write_whole_text
from kd_lightning.runs.configs import with_current_names
from kd_lightning.yaml_files import read_yaml_file

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "wandb")


@rank_zero_only
def _true_in_main() -> bool:
    return True


def is_main() -> bool:
    """Whether this process writes the run's files: only the first of a distributed run does."""
    # The decorated function returns None in the other processes.
    return bool(_true_in_main())


def make_folder(path: Path, resumed: bool) -> Path:
    """Create a run's folder.

    Args:
        path: the folder; a number is appended if a run of that name exists.
        resumed: whether the run continues in its own folder, which is then reused.

    Raises:
        UserError: if the folder cannot be created.
    """
    try:
        if resumed and path.is_dir():
            # Fail here, before any training, if the folder cannot be written to.
            (path / "run.json").touch()
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
            # Checking first would let two processes choose the same folder.
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UserError(
            f"cannot write the run's folder {path} ({error.strerror}); "
            "choose another --run.root or --run.dir"
        ) from error
    raise UserError(
        f"there are 9,999 runs called {path.name} in {path.parent}; choose another --run.name"
    )


@cache
def versions() -> dict[str, str]:
    """Versions of Python, this package and the installed packages that decide results."""
    installed = {"python": platform.python_version(), "kd_lightning": __version__}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


@cache
def commit() -> str | None:
    """The commit of the running source, with `-dirty` if it was changed; None without git."""
    source = Path(__file__).parents[2]
    # Changes of documentation or results do not make a checkout dirty.
    tracked = (
        "kd_lightning",
        "configs",
        ":(glob)experiments/**/*.yaml",
        ":(glob)experiments/**/*.py",
    )
    try:
        head = _git(source, "rev-parse", "HEAD")
        changes = _git(source, "status", "--porcelain", "--", *tracked)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    completed = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return completed.stdout.strip()


@cache
def hardware() -> dict[str, Any]:
    """The machine: `cpu`, `cores`, `threads` that torch uses, and the names of its `gpus`."""
    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    # On Linux, `platform.processor` often knows only the architecture.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically: readers see the whole new file or the old one."""
    write_whole_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        # A RecursionError means brackets that are nested thousands of levels deep.
        return {}
    return content if isinstance(content, dict) else {}


def numeric_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among logged values: numbers whose name has no leading underscore."""
    metrics = {}
    for name, value in values.items():
        # A bool is an int to Python, but not a measurement.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not name.startswith("_"):
            metrics[name] = float(value)
    return metrics


@dataclass(frozen=True)
class RunFolder:
    """Reads one run from the folder that `kd` wrote for it.

    Properties read the disk each time they are used, so they are current while the run trains.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def record_path(self) -> Path:
        """The path of run.json."""
        return self.path / "run.json"

    @property
    def config_path(self) -> Path:
        """The path of the resolved config."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The path of the checkpoint of the last epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def test_predictions(self) -> Path:
        """The path of the logits, targets and indices of the test set."""
        return self.path / "predictions-test.safetensors"

    @property
    def is_cache(self) -> bool:
        """Whether the folder holds a teacher's cached outputs instead of a trained network."""
        return (self.path / "manifest.json").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json; empty if it is missing or damaged."""
        return read_json(self.record_path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, with current paths of classes that have moved.

        Raises:
            UserError: if config.yaml is missing, damaged or not a mapping.
        """
        try:
            content = read_yaml_file(self.config_path, str(self.config_path))
        except UserError as error:
            raise UserError(
                f"{self.path}: config.yaml is missing or damaged: {error}"
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{self.path}: config.yaml does not hold keys with values")
        return dict(with_current_names(content))

    @property
    def seed(self) -> int:
        """The seed.

        Raises:
            UserError: if run.json has none.
        """
        seed = self.record.get("seed")
        if not isinstance(seed, int):
            raise UserError(f"{self.path}: run.json is missing, damaged or has no seed")
        return seed

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric; empty if the run has measured none."""
        return numeric_metrics(self.record.get("metrics") or {})

    @property
    def status(self) -> str:
        """`running`, `finished`, `failed` or `interrupted`; empty without a run.json."""
        return str(self.record.get("status", ""))

    @property
    def started(self) -> str:
        """When the run started, as ISO text."""
        return str(self.record.get("started", ""))

    @property
    def job_type(self) -> str:
        """The kind of run, such as `teacher` or `distill`."""
        return str(self.record.get("job_type", ""))

    @property
    def wall_time_s(self) -> float:
        """How long the run took, in seconds, summed over interruptions."""
        return float(self.record.get("wall_time_s", 0))

    @property
    def data(self) -> Mapping[str, Any]:
        """The datamodule's description of the data; empty if there is none."""
        return self.record.get("data") or {}

    @property
    def teacher_sources(self) -> Sequence[Mapping[str, Any]]:
        """Where the teachers' weights came from: `path`, `sha256`, `network`, perhaps `cache`."""
        return self.record.get("teacher") or []


_KEPT = ("accepted", "stored")
"""Entries of run.json that a resumed run keeps."""


class RunRecord:
    """Keeps run.json: what ran, on what, for how long, and how it ended.

    Args:
        folder: the run's folder; a resumed run keeps its metrics, start and time, and lists the
            commands, commits and versions before this one as `earlier`.
        content: entries that the command adds.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.path = folder / "run.json"
        earlier = read_json(self.path)
        self._earlier_s = float(earlier.get("wall_time_s", 0.0))
        self._started = time.monotonic()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.content = {
            "status": "running",
            "metrics": earlier.get("metrics", {}),
            "report": earlier.get("report"),
            "started": earlier.get("started", now),
            "command": masked_command(["kd", *sys.argv[1:]]),
            "cwd": str(Path.cwd()),
            **content,
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
        }
        for name in _KEPT:
            if name in earlier:
                self.content[name] = earlier[name]
        if "command" in earlier:
            part = {
                name: earlier.get(name) for name in ("command", "commit", "versions")
            }
            self.content["earlier"] = [*earlier.get("earlier", []), part]
        self.write()

    def write(self, **changes: Any) -> None:
        """Update entries and the elapsed time, and write run.json.

        Raises:
            OSError: if it cannot be written.
        """
        self.content |= changes
        elapsed_s = time.monotonic() - self._started
        self.content["wall_time_s"] = round(self._earlier_s + elapsed_s, 3)
        write_json(self.path, self.content)

    def write_anyway(self, **changes: Any) -> None:
        """Like `write`, also on a full disk: the file's own blocks are then written over.

        Nothing is raised, because this is called while another error is on its way.
        """
        try:
            self.write(**changes)
        except OSError:
            text = json.dumps(self.content, indent=None, allow_nan=True) + "\n"
            with (
                contextlib.suppress(OSError),
                self.path.open("r+", encoding="utf-8") as file,
            ):
                file.write(text)
                file.truncate()
