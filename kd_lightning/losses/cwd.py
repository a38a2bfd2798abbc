"""Channel-wise distillation: Shu et al. 2021."""

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
    shapes_of,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


def channel_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 4.0,
) -> Tensor:
    r"""The divergence between the distributions of each channel over positions, in nats.

    $\frac{\tau^2}{C} \sum_c KL(\varphi(t_c) \| \varphi(s_c))$ with
    $\varphi(x) = softmax_n(x / \tau)$ over the n positions, mean over samples (Shu et al.
    2021).

    Args:
        student: `(B, C, H, W)`.
        teacher: the same shape.
        temperature: $\tau$, greater than 0.

    Returns:
        A scalar; zero if each channel agrees up to a constant.
    """
    # `(B, C, H W)`: a distribution over positions for each channel.
    own_logits = full(student).flatten(2) / temperature
    target_logits = full(teacher).flatten(2) / temperature
    own = F.log_softmax(own_logits, dim=2)
    target = F.log_softmax(target_logits, dim=2)
    # Both sides stay logarithms: public code takes the log of a softmax, which underflows.
    terms = target.exp() * (target - own)
    divergence = terms.sum(2)
    return temperature**2 * divergence.mean()


class CWD(DistillLoss):
    """Each channel of the student is active at the same positions as the teacher's channel.

    Made for dense prediction: compare the maps of logits (the layer of the role `head` in a
    segmentation network), or features. If the channels differ, a 1x1 convolution maps the student's
    to the teacher's. If the sizes differ, the student's map is interpolated to the teacher's.

    `weight` is 3 for maps of logits at a temperature of 4 in the paper; a public framework uses 5
    at a temperature of 1 for segmentation.

    Args:
        layer: role of a map of student and teacher.
        temperature: of the distributions over positions.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map of
            two positions or more.
    """

    paper: ClassVar[str] = "Shu et al. 2021, arXiv 2011.13256"
    year: ClassVar[int] = 2021
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self, layer: str = "map", temperature: float = 4.0, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("CWD", "layer", layer)
        self.roles = [self.layer]
        self.temperature = positive("CWD", "temperature", temperature)
        self.adapter: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the convolution, if channels differ."""
        own, target = shapes_of(
            "CWD", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        if target[2:].numel() < 2:
            raise UserError(
                f"CWD: the teacher's layer {self.layer!r} has one position, over which there is no "
                "distribution; name a larger map"
            )
        if own[1] != target[1]:
            self.adapter = nn.Conv2d(own[1], target[1], 1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`channel_divergence` between both maps, a scalar.

        Raises:
            UserError: before `build`, if the channels differ.
        """
        target = feature_of("CWD", teacher_of(self, teacher), self.layer)
        own = feature_of("CWD", student, self.layer)
        if self.adapter is not None:
            own = adapted(self.adapter, own)
        if own.shape[1] != target.shape[1]:
            raise not_built("CWD")
        if own.shape[2:] != target.shape[2:]:
            size = [target.shape[2], target.shape[3]]
            own = F.interpolate(own, size, mode="bilinear", align_corners=False)
        return channel_divergence(own, target, self.temperature)
