"""Training without a teacher: teachers themselves, and baselines."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.training.base import BaseModule
from kd_lightning.training.optimizers import OptimizerFactory, SchedulerFactory, default_optimizer


class ClassifierModule(BaseModule):
    """Trains a network on labels: a teacher, or the student alone.

    Args:
        network: any nn.Module that returns logits `(B, K)`.
        losses: by name; cross-entropy with the labels where left out.
        optimizer: from the trainable parameters to an optimizer.
        scheduler: from an optimizer to a learning-rate scheduler. One that takes `total_steps` (one-cycle) is told them and
            moves every step, any other every epoch.
        layers: module name for each role, where a loss taps layers.
        init_from: checkpoint or weights file to start from.
        spec: what the data is; filled in from the datamodule.
        channels_last: keep images and convolutions in that memory format, which is faster for most convolutional networks.
    """

    role: ClassVar[str] = "network"

    def __init__(
        self,
        network: nn.Module,
        losses: dict[str, DistillLoss] | None = None,
        optimizer: OptimizerFactory = default_optimizer,
        scheduler: SchedulerFactory | None = None,
        layers: dict[str, str] | None = None,
        init_from: str | None = None,
        spec: dict[str, Any] | None = None,
        channels_last: bool = False,
    ) -> None:
        losses = {"ce": CrossEntropy()} if losses is None else losses
        super().__init__(
            network, losses, optimizer, scheduler, layers, init_from, spec, channels_last
        )
        self.keep_hyperparameters()
