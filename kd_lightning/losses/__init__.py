"""Losses, one file a method. Every public loss class of this package is found here by name, so that adding a file is enough."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from kd_lightning.losses.base import DistillLoss, Probe

__all__ = ["DistillLoss", "Probe"]

for _module in pkgutil.iter_modules(__path__):
    for _name, _value in vars(import_module(f"{__name__}.{_module.name}")).items():
        if (
            isinstance(_value, type)
            and issubclass(_value, DistillLoss)
            and not _name.startswith("_")
        ):
            globals()[_name] = _value
            __all__ += [_name] if _name not in __all__ else []


def __getattr__(
    name: str,
) -> Any:  # for type checkers: the losses are found when the package is imported
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
