"""Where the shipped configs and experiments lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_root() -> Path:
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parent


def shipped(name: str) -> Path | None:
    """The shipped file of that relative path, such as `configs/data/mnist.yaml`; None where there is none."""
    path = shipped_root() / name
    return path if not Path(name).is_absolute() and path.is_file() else None
