"""Locates the shipped configs and experiments.

In a checkout they lie beside the package, in an installed wheel inside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_root() -> Path:
    """The folder that holds `configs/` and `experiments/`."""
    in_wheel = _PACKAGE / "_shipped"
    if in_wheel.is_dir():
        return in_wheel
    return _PACKAGE.parent


def shipped(name: str) -> Path | None:
    """The shipped file with this relative path, or None if there is no such file.

    Args:
        name: relative path such as `configs/data/mnist.yaml`.
    """
    if Path(name).is_absolute():
        return None
    path = shipped_root() / name
    if not path.is_file():
        return None
    return path
