"""Losses, one file per method.

Every public loss class of this package is found when the package is imported, so adding a file is
enough. `__init__.pyi` lists the same classes for type checkers and editors; `make lint` updates it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from kd_lightning.losses.base import DistillLoss, Probe

__all__ = ["DistillLoss", "Probe"]

for _module in pkgutil.iter_modules(__path__):
    for _name, _value in vars(import_module(f"{__name__}.{_module.name}")).items():
        _is_loss = isinstance(_value, type) and issubclass(_value, DistillLoss)
        if _is_loss and not _name.startswith("_") and _name not in __all__:
            globals()[_name] = _value
            __all__.append(_name)
