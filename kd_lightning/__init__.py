"""Knowledge distillation research on PyTorch Lightning.

Public names load on first use, so that `import kd_lightning` imports neither torch nor lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "Batch": "types",
    "ClassifierModule": "training",
    "DistillationModule": "training",
    "DistillLoss": "losses",
    "MutualModule": "training",
    "Output": "types",
    "Teacher": "teachers",
    "UserError": "errors",
    "quiet": "runs.quiet",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PUBLIC[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
