"""Compiles networks: `--trainer.callbacks+=kd_lightning.runs.compile.CompileNetworks`."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
from torch import nn

from kd_lightning.teachers.base import Teacher
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.training.module import TrainingModule


class CompileNetworks(pl.Callback):
    """Compiles the student's and the teachers' networks in place with `torch.compile`.

    Parameters keep their names, and checkpoints stay the same. The first steps wait for the
    compiler (on a CPU, a C++ compiler), so only long runs gain.

    Args:
        backend: of `torch.compile`.
        mode: of `torch.compile`, such as "reduce-overhead" or "max-autotune"; only the backend
            "inductor" has modes.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        self.backend = backend
        self.mode = mode

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile student and teachers in place; the first step pays for it.

        Args:
            trainer: that is about to train.
            pl_module: in training.
        """
        # The networks are on their device by now.
        for network in networks(pl_module):
            network.compile(backend=self.backend, mode=self.mode)


def networks(module: pl.LightningModule) -> Iterator[nn.Module]:
    """The network that a module trains, and those of its teacher."""
    if isinstance(module, TrainingModule):
        yield module.net
    yield from teacher_networks(module)


def teacher_networks(module: pl.LightningModule) -> Iterator[nn.Module]:
    """The networks of a module's teacher, which may consist of other teachers."""
    if not isinstance(module, DistillationModule):
        return
    groups: list[nn.Module] = [module.teacher]
    while groups:
        for child in groups.pop().children():
            if isinstance(child, Teacher | nn.ModuleList | nn.ModuleDict):
                groups.append(child)
            else:
                yield child
