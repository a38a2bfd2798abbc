"""A run's folder: creating it, writing its run.json, and reading a run back."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.errors import UserError
from kd_lightning.files import write_whole_text
from kd_lightning.masking import masked_command
from kd_lightning.runs.configs import with_current_names
from kd_lightning.runs.machine import commit, hardware, versions
from kd_lightning.values import Value, Values
from kd_lightning.yaml_files import read_yaml_file

__all__ = [
    "RunFolder",
    "RunRecord",
    "commit",
    "hardware",
    "is_main",
    "make_folder",
    "numeric_metrics",
    "read_json",
    "versions",
    "write_json",
]


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
            folder = path
            if number > 1:
                folder = path.with_name(f"{path.name}-{number}")
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


def write_json(path: Path, content: Values) -> None:
    """Write a JSON file atomically: readers see the whole new file or the old one.

    Args:
        path: of the file; its folder exists.
        content: the object.

    Raises:
        OSError: if the file cannot be written.
    """
    write_whole_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        # A RecursionError means brackets that are nested thousands of levels deep.
        return {}
    if not isinstance(content, dict):
        return {}
    return content


def numeric_metrics(values: Values) -> dict[str, float]:
    """The metrics among logged values: numbers whose name has no leading underscore."""
    metrics = {}
    for name, value in values.items():
        # A bool is an int to Python, but not a measurement.
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not name.startswith("_"):
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

    def __init__(self, folder: Path, content: Values) -> None:
        self.path = folder / "run.json"
        # Empty for a new run.
        earlier = read_json(self.path)
        self._earlier_s = float(earlier.get("wall_time_s", 0.0))
        # The clock of the wall may be set while the run trains.
        self._started = time.monotonic()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.content: dict[str, Any] = {
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
            # The parts of a resumed run may have trained with different code.
            part = {}
            for name in ("command", "commit", "versions"):
                part[name] = earlier.get(name)
            self.content["earlier"] = [*earlier.get("earlier", []), part]
        self.write()

    def write(self, **changes: Value) -> None:
        """Update entries and the elapsed time, and write run.json.

        Raises:
            OSError: if it cannot be written.
        """
        self.content |= changes
        elapsed_s = time.monotonic() - self._started
        self.content["wall_time_s"] = round(self._earlier_s + elapsed_s, 3)
        write_json(self.path, self.content)

    def write_anyway(self, **changes: Value) -> None:
        """Like `write`, also on a full disk: the file's own blocks are then written over.

        Nothing is raised, because this is called while another error is on its way.
        """
        try:
            self.write(**changes)
        except OSError:
            # Without indentation the text is shorter than what stands in the file.
            text = json.dumps(self.content, indent=None, allow_nan=True) + "\n"
            with (
                contextlib.suppress(OSError),
                self.path.open("r+", encoding="utf-8") as file,
            ):
                file.write(text)
                file.truncate()
