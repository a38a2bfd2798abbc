"""Orthogonal projections: Miles, Elezi and Deng 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.losses._adapters import (
    check_role,
    feature_pairs,
    not_built,
    pooled,
    shapes_of,
)
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output, full


class OrthogonalProjection(nn.Module):
    r"""A linear map without bias that stays orthogonal while it trains.

    The weight is $Q e^A$ with a fixed random orthogonal Q and a trained skew-symmetric A, which is
    0 at first, cut to the shape: its rows or columns, whichever are fewer, are orthonormal. It is
    torch's parametrization with the matrix exponential, in at least single precision.

    Args:
        width: of the input, D.
        teacher_width: of the output, D'.
    """

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        size = max(width, teacher_width)
        self.width = width
        self.teacher_width = teacher_width
        base, _ = torch.linalg.qr(torch.randn(size, size))
        self.register_buffer("base", base)
        # Only the entries below the diagonal are used.
        self.lower = nn.Parameter(torch.zeros(size, size))

    def weight(self) -> Tensor:
        """The orthogonal matrix, `(D', D)`."""
        lower = full(self.lower).tril(-1)
        # A is skew-symmetric, so that e^A is a rotation.
        skew_symmetric = lower - lower.T
        rotation = torch.linalg.matrix_exp(skew_symmetric)
        base = full(self.get_buffer("base"))
        orthogonal: Tensor = base @ rotation
        return orthogonal[: self.teacher_width, : self.width]

    def forward(self, feature: Tensor) -> Tensor:
        """`(B, D)` to `(B, D')`."""
        projected: Tensor = full(feature) @ self.weight().T
        return projected


def projection_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The smooth L1 distance to the teacher's standardized feature, mean over all elements.

    Args:
        student: the projected feature, `(B, D)`.
        teacher: `(B, D)`; each row is brought to mean 0 and variance 1 (layer norm without
            parameters).

    Returns:
        A scalar.
    """
    target = F.layer_norm(full(teacher), teacher.shape[1:])
    return F.smooth_l1_loss(full(student), target)


class VkD(DistillLoss):
    """The student's pooled feature, turned by an orthogonal map, predicts the teacher's.

    An orthogonal projection keeps all distances between the student's features, so the features
    must do the work, not the projection. The teacher's feature is standardized, as the paper does
    for discriminative tasks.

    `weight` is 1. The paper adds the KL at a temperature of 1 on a distillation head of its own.

    Args:
        layer: role of a map, which is averaged over positions, or of pooled features, of student
            and teacher.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: from `build`, if features are neither maps nor vectors, or of different kinds.
    """

    paper: ClassVar[str] = "Miles et al. 2024, arXiv 2403.06213"
    year: ClassVar[int] = 2024
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(self, layer: str = "penultimate", **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.layer = check_role("VkD", "layer", layer)
        self.roles = [self.layer]
        self.projection: OrthogonalProjection | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projection."""
        own, target = shapes_of("VkD", student, teacher, (self.layer, self.layer))
        self.projection = OrthogonalProjection(own[1], target[1])

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`projection_distance` between both features, a scalar.

        Raises:
            UserError: before `build`.
        """
        [(student_feature, teacher_feature)] = feature_pairs(self, student, teacher)
        if self.projection is None:
            raise not_built("VkD")
        own = pooled(student_feature)
        target = pooled(teacher_feature)
        # In half precision the weight would not be orthogonal.
        with torch.autocast(student.logits.device.type, enabled=False):
            # `(B, D)` to the teacher's `(B, D')`.
            projected = self.projection(own)
            return projection_distance(projected, target)
