"""A run's folder and its run.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from kd_lightning import __version__
from kd_lightning.errors import UserError

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "wandb")


def is_main() -> bool:
    """Whether this process is the one that writes: the first of all that train together."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def make_folder(wanted: Path, resumed: bool) -> Path:
    """A new folder of that name, a number added where it exists; the folder itself where a run of its own is resumed.

    Raises:
        UserError: where the place cannot be written to.
    """
    try:
        if resumed and wanted.is_dir():
            (wanted / "run.json").touch()
            return wanted
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UserError(
            f"the run's folder {wanted} cannot be written ({error.strerror}); choose another --run.root or --run.dir"
        ) from error
    raise UserError(
        f"there are 9,999 runs called {wanted.name} in {wanted.parent}; choose another --run.name"
    )


@cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kd_lightning": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The commit of the source that runs, `-dirty` where it was changed; None outside a checkout."""
    source, decisive = (
        Path(__file__).parents[2],
        (
            "kd_lightning",
            "configs",
            ":(glob)experiments/**/*.yaml",
            ":(glob)experiments/**/*.py",
        ),
    )
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=source, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *decisive])
        )
        return head + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def hardware() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name
        )
    except OSError:
        pass
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or none of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=True) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """An empty mapping where the file is missing or cut short."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class RunRecord:
    """Keeps run.json: what ran, on what, for how long, and how it ended."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.path = folder / "run.json"
        earlier = read_json(self.path)
        self._before = float(earlier.get("wall_time_s", 0.0))
        self._started = time.monotonic()
        self.content = {
            "status": "running",
            "metrics": earlier.get("metrics", {}),
            "started": earlier.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
            "command": ["kd", *sys.argv[1:]],
            **content,
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
        }
        self.write()

    def write(self, **changes: Any) -> None:
        self.content |= changes
        self.content["wall_time_s"] = round(self._before + time.monotonic() - self._started, 3)
        write_json(self.path, self.content)
