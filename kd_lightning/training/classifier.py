"""Training without a teacher: teachers themselves, and baselines."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.training.module import TrainingModule, Trains
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
)
from kd_lightning.training.parameter_groups import ParameterGroup


class ClassifierModule(TrainingModule):
    """Trains a network on labels: a teacher, or the student alone.

    Args:
        network: any nn.Module that returns logits.
        losses: by name; cross-entropy with the labels if left out.
        optimizer: from the trainable parameters to an optimizer.
        scheduler: from an optimizer to a learning-rate scheduler. A scheduler that takes
            `total_steps` (OneCycleLR, `kd_lightning.training.schedulers.WarmupCosineLR`) receives
            the number of steps and moves after every step; `lightning.pytorch.cli.ReduceLROnPlateau`
            with its `monitor` after each validation; any other after every epoch.
        layers: module name for each role, if a loss reads layers.
        init_from: checkpoint or weights file to start from, or the name of torchvision weights
            such as `ResNet18_Weights.DEFAULT`. A head for other classes is skipped. Adapters of
            losses of the same name continue from a kd checkpoint, too.
        spec: what the data is; filled in from the datamodule.
        channels_last: keep images and convolutions in that memory format, which is faster for most
            convolutional networks.
        train: what the optimizer updates: the network, the losses' adapters, or both.
        outputs: which entry of the network's output holds the logits: the index in a tuple, or the
            key or attribute. By default the output is a tensor or has an entry `logits`. Another
            head gets a loss of its own with `CrossEntropy(head=ROLE)`.
        parameter_groups: parameters with a learning rate or weight decay of their own; see
            `kd_lightning.training.parameter_groups.ParameterGroup`.
        row_chunk: for language models: compute the logits of this many tokens at a time, and again
            in the backward pass, so that those of a whole batch are never in memory. `None`: all
            at once.
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
        train: Trains = "both",
        outputs: int | str | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
        row_chunk: int | None = None,
    ) -> None:
        super().__init__(
            network=network,
            losses={"ce": CrossEntropy()} if losses is None else losses,
            optimizer=optimizer,
            scheduler=scheduler,
            layers=layers,
            init_from=init_from,
            spec=spec,
            channels_last=channels_last,
            train=train,
            outputs=outputs,
            parameter_groups=parameter_groups,
            row_chunk=row_chunk,
        )
        # The arguments of this constructor, from which a checkpoint builds the module
        # again.
        self.keep_hyperparameters()

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.net
