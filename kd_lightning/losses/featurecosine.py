"""Direction of projected global and local features, as distilled from foundation models."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    feature_of,
    not_built,
    pooled,
    shapes_of,
)
from kd_lightning.losses._gather import unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$1 - \cos(s, t)$ along the channels, mean over samples and positions.

    Args:
        student: `(B, C)` or `(B, C, H, W)`.
        teacher: the same shape.

    Returns:
        A scalar in [0, 2]; a vector of zeros has the distance 1 from any other.
    """
    # Channels last, so that each position of a map is one vector.
    own = unit(full(student).movedim(1, -1))
    target = unit(full(teacher).movedim(1, -1))
    return 1 - (own * target).sum(-1).mean()


def resized(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map `(B, C, H, W)` at the size of the teacher's, by bilinear interpolation."""
    if student.shape[2:] == teacher.shape[2:]:
        return student
    return F.interpolate(
        full(student), teacher.shape[2:], mode="bilinear", align_corners=False
    )


class FeatureCosine(DistillLoss):
    r"""The student's features point where the teacher's do, of the image and at each position.

    $a \, (1 - \cos(g_S, g_T)) + b \, (1 - \cos(f_S, f_T))$: the first term compares global
    features, which are pooled if they are maps, and the second one maps of local features, mean
    over positions. A linear layer and a 1x1 convolution map the student's features to the teacher's
    widths. The student's map is interpolated to the teacher's size before its projection.

    Neither labels nor logits are read, so the images may be unlabelled. The length of a feature
    plays no part, so that a few large channels of the teacher do not decide the loss.

    Args:
        layer: role of the global feature of student and teacher.
        map_layer: role of the last map of student and teacher; null leaves out the second term.
        overall: a, at least 0.
        local: b, at least 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not fit.
    """

    paper: ClassVar[str] = "Ranzinger et al. 2024, arXiv 2312.06709"
    year: ClassVar[int] = 2024
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "penultimate",
        map_layer: str | None = "map",
        overall: float = 1.0,
        local: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("FeatureCosine", "layer", layer)
        self.map_layer = map_layer
        self.roles = [self.layer]
        if map_layer is not None:
            self.roles.append(check_role("FeatureCosine", "map_layer", map_layer))
        self.overall = not_negative("FeatureCosine", "overall", overall)
        self.local = not_negative("FeatureCosine", "local", local)
        # A loss of two terms without weight would be zero, which is a mistake in the
        # config.
        if self.overall == 0 and (self.local == 0 or map_layer is None):
            raise UserError(
                "FeatureCosine: overall and local leave nothing to compare; raise one of them"
            )
        self.projector: nn.Module | None = None
        self.map_projector: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projectors."""
        own, target = shapes_of(
            "FeatureCosine", student, teacher, (self.layer, self.layer)
        )
        self.projector = nn.Linear(own[1], target[1])
        if self.map_layer is not None:
            roles = (self.map_layer, self.map_layer)
            own, target = shapes_of(
                "FeatureCosine", student, teacher, roles, ranks=(4,)
            )
            self.map_projector = nn.Conv2d(own[1], target[1], 1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum of both terms, a scalar.

        Raises:
            UserError: before `build`.
        """
        target_output = teacher_of(self, teacher)
        if self.projector is None:
            raise not_built("FeatureCosine")
        own = pooled(feature_of("FeatureCosine", student, self.layer))
        projected = adapted(self.projector, own)
        target = pooled(feature_of("FeatureCosine", target_output, self.layer))
        total = self.overall * cosine_distance(projected, target)
        if self.map_projector is None or self.map_layer is None:
            return total
        # Resized before the projector, which then runs on as many positions as are compared.
        target_map = feature_of("FeatureCosine", target_output, self.map_layer)
        student_map = feature_of("FeatureCosine", student, self.map_layer)
        own_map = resized(student_map, target_map)
        projected_map = adapted(self.map_projector, own_map)
        return total + self.local * cosine_distance(projected_map, target_map)
