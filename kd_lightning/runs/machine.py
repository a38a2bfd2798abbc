"""The machine and the code behind a run: versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kd_lightning import __version__

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "wandb")


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
    # Without git, or outside of a checkout, as in a wheel.
    try:
        head = _git(source, "rev-parse", "HEAD")
        changes = _git(source, "status", "--porcelain", "--", *tracked)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
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
        for number in range(torch.cuda.device_count()):
            gpus.append(torch.cuda.get_device_name(number))
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    """The processor's name as its vendor sells it, where the system knows it."""
    # On Linux, `platform.processor` often knows only the architecture.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
