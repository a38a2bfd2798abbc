"""A simple recipe for distillation: Miles and Mikolajczyk 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    feature_pairs,
    not_built,
    pooled,
    shapes_of,
)
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output, full

EPS = 1e-4
"""Added to variances, as in the authors' code."""

TINY = 1e-12
"""Added inside the logarithm, which has no value for equal features."""


def standardized(rows: Tensor) -> Tensor:
    """Each column less its mean over the batch, over its standard deviation: `(B, D)`.

    Batch normalization in train mode, without parameters. A single row becomes zeros.
    """
    rows = full(rows)
    # One mean and one variance per column, `(D,)`; the variance is the biased one.
    centered = rows - rows.mean(0)
    variance = centered.square().mean(0)
    deviation = (variance + EPS).sqrt()
    return centered / deviation


def log_sum_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\log \sum |z_s - z_t|^4$ over samples and channels of standardized features.

    Miles and Mikolajczyk 2024. A batch of B times as many samples only adds log B, without a
    gradient.

    Args:
        student: the projected feature, `(B, D)`.
        teacher: `(B, D)`.

    Returns:
        A scalar; it falls without bound (here to log 1e-12) as the features become equal.
    """
    own = standardized(student)
    target = standardized(teacher)
    fourth_powers = (own - target).square().square()
    # The logarithm of the sum, not the sum of logarithms: one number per batch.
    return (fourth_powers.sum() + TINY).log()


class SRD(DistillLoss):
    """The student's pooled feature, projected and standardized, predicts the teacher's.

    A linear layer maps the student's feature to the teacher's width; both sides are standardized
    over the batch, always with the batch's own statistics. The logarithm keeps the gradient's size
    independent of the loss; there is no minimum at 0.

    The joint batch of all processes is standardized together.

    The method's total is 2 times this loss, plus the KL at a temperature of 1, plus the hard loss:
    see `configs/methods/srd.yaml`.

    Args:
        layer: role of a map, which is averaged over positions, or of pooled features, of student
            and teacher.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: from `build`, if features are neither maps nor vectors, or of different kinds.
    """

    paper: ClassVar[str] = "Miles and Mikolajczyk 2024, arXiv 2303.11098"
    year: ClassVar[int] = 2024
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "joint"

    def __init__(self, layer: str = "penultimate", **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.layer = check_role("SRD", "layer", layer)
        self.roles = [self.layer]
        self.projector: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projector."""
        own, target = shapes_of("SRD", student, teacher, (self.layer, self.layer))
        self.projector = nn.Linear(own[1], target[1])

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`log_sum_distance` of the joint batch, a scalar.

        Raises:
            UserError: before `build`.
        """
        [(student_feature, teacher_feature)] = feature_pairs(self, student, teacher)
        if self.projector is None:
            raise not_built("SRD")
        # The student's `(B, D)` becomes as wide as the teacher's `(B, D')`.
        own = adapted(self.projector, pooled(student_feature))
        target = pooled(teacher_feature)
        joined = JoinedBatch(batch)
        # Fourth powers need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            return log_sum_distance(joined(own), joined(target))
