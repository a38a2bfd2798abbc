"""The teacher's classifier on the student's features: Chen et al. 2022."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    BatchNorm,
    FrozenHead,
    adapted,
    check_role,
    feature_of,
    last_maps,
    not_built,
    pooled,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output


def projector(channels: int, teacher_channels: int, reduction: int) -> nn.Sequential:
    """Convolutions 1x1, 3x3 and 1x1, each with batch norm and ReLU, without biases.

    The two inner ones have `teacher_channels / reduction` channels.
    """
    width = max(1, teacher_channels // reduction)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        BatchNorm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        BatchNorm(width),
        nn.ReLU(),
        nn.Conv2d(width, teacher_channels, 1, bias=False),
        BatchNorm(teacher_channels),
        nn.ReLU(),
    )


class SimKD(DistillLoss):
    """The student learns the teacher's last map, and predicts with the teacher's classifier.

    A projector maps the student's last map to the teacher's channels; the loss is the mean over all
    elements of the squared difference. It is used alone: there is no hard loss, and no softened
    one. What is evaluated are the logits of the teacher's frozen classifier on the projected map;
    the student's own classifier does not train and is of no use.

    So the network that predicts has more parameters than the student: count the projector and the
    classifier when you compare. Both are in the training checkpoint, which `kd test` reads; an
    exported student has neither.

    On several devices it needs `--trainer.strategy=ddp_find_unused_parameters_true`, because the
    student's classifier gets no gradient.

    Args:
        layer: role of the last map before global pooling, after its ReLU, of student and teacher.
            The larger map is averaged down.
        head: role of the teacher's classifier.
        reduction: by which the projector's inner channels are fewer than the teacher's.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map, the
            head is no linear classifier of its channels, or samples have more than one label.
    """

    paper: ClassVar[str] = "Chen et al. 2022, arXiv 2203.14001"
    year: ClassVar[int] = 2022
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "teacher classifier")
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        head: str = "head",
        reduction: int = 2,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("SimKD", "layer", layer)
        self.head = check_role("SimKD", "head", head)
        if (
            isinstance(reduction, bool)
            or not isinstance(reduction, int)
            or reduction < 1
        ):
            raise UserError(
                f"SimKD: reduction must be a whole number from 1, got {reduction}"
            )
        self.reduction = reduction
        self.projector: nn.Module | None = None
        self.classifier: FrozenHead | None = None
        self.size = (1, 1)

    @property
    def student_roles(self) -> set[str]:
        """The last map."""
        return {self.layer}

    @property
    def teacher_roles(self) -> set[str]:
        """The last map and the classifier."""
        return {self.layer, self.head}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projector, and copy the teacher's classifier."""
        maps = last_maps("SimKD", student, teacher, self.layer, self.head)
        _, channels, height, width = maps.student
        _, teacher_channels, teacher_height, teacher_width = maps.teacher
        self.projector = projector(channels, teacher_channels, self.reduction)
        self.classifier = maps.classifier
        # The smaller size of both: evaluation projects a map of that size too, without a teacher.
        self.size = (min(height, teacher_height), min(width, teacher_width))

    def project(self, student: Output) -> Tensor:
        """The student's map in the teacher's channels, `(B, C', H, W)`.

        Raises:
            UserError: before `build`.
        """
        if self.projector is None:
            raise not_built("SimKD")
        own = feature_of("SimKD", student, self.layer)
        # `(B, C, H, W)` at the smaller size of both networks.
        if own.shape[2:] != self.size:
            own = F.adaptive_avg_pool2d(own, self.size)
        return adapted(self.projector, own)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The mean squared difference of the maps, a scalar."""
        target = feature_of("SimKD", teacher_of(self, teacher), self.layer)
        own = self.project(student)
        if target.shape[2:] != self.size:
            target = F.adaptive_avg_pool2d(target, self.size)
        # Both maps are `(B, C', H, W)`.
        difference = own - target
        return difference.square().mean()

    def predict(self, student: Output, batch: Batch) -> Output:
        """The student's output with the logits of the teacher's classifier on the projected map."""
        own = self.project(student)
        assert self.classifier is not None
        # `(B, C', H, W)` to `(B, C')` to `(B, K)`, as in the teacher itself.
        logits = self.classifier(pooled(own))
        return replace(student, logits=logits)
