"""`torch.compile` as a switch: `--trainer.callbacks+=kd_lightning.runs.compile.CompileNetworks`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from torch import nn

from kd_lightning.teachers.base import Teacher


class CompileNetworks(pl.Callback):
    """Compiles the student's and the teachers' networks in place, once they are on their device.

    Parameters keep their names, and checkpoints stay as they are. The first steps of a run wait for the compiler (on a CPU, a
    C++ compiler), so that only long runs gain.

    Args:
        backend: of `torch.compile`.
        mode: of `torch.compile`, such as "reduce-overhead" or "max-autotune"; backends other than inductor have none.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        self.backend, self.mode = backend, mode

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for network in networks(pl_module):
            network.compile(backend=self.backend, mode=self.mode)


def networks(module: Any) -> Iterator[nn.Module]:
    """The network that a module trains, and those of its teacher."""
    yield module.net
    yield from teacher_networks(module)


def teacher_networks(module: Any) -> Iterator[nn.Module]:
    """The networks of a module's teacher, which may be made of other teachers."""
    groups = [t for t in (getattr(module, "teacher", None),) if t is not None]
    while groups:
        for child in groups.pop().children():
            if isinstance(child, Teacher | nn.ModuleList | nn.ModuleDict):
                groups.append(child)
            else:
                yield child
