"""Knowledge review: Chen et al. 2021."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    BatchNorm,
    check_layers,
    feature_of,
    not_built,
    shapes_of,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full

MAX_CHANNELS = 512
"""Most channels of the fused features."""

POOLED_SIZES = (4, 2, 1)
"""Sizes to which the hierarchical context loss averages maps down."""


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""The hierarchical context loss: squared differences at several resolutions.

    The mean over elements of $(s - t)^2$ at full size with weight 1, and of both maps averaged down
    to 4x4, 2x2 and 1x1 with weights 1/2, 1/4 and 1/8, as far as that is smaller; divided by the sum
    of the weights (Chen et al. 2021, and the authors' code).

    Args:
        student: `(B, C, H, W)`.
        teacher: the same shape.

    Returns:
        A scalar; zero if both agree.
    """
    student = full(student)
    teacher = full(teacher)
    total = (student - teacher).square().mean()
    weight = 1.0
    weights = 1.0
    shorter_side = min(teacher.shape[2:])
    for size in POOLED_SIZES:
        if size >= shorter_side:
            continue
        own = F.adaptive_avg_pool2d(student, size)
        target = F.adaptive_avg_pool2d(teacher, size)
        weight /= 2
        weights += weight
        total = total + weight * (own - target).square().mean()
    return total / weights


class Fusion(nn.Module):
    """Attention-based fusion: joins a layer of the student with what the later layers passed on.

    Args:
        channels: of the student's layer.
        width: channels of what is passed on.
        teacher_channels: of the result.
        fuses: whether there is a later layer.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        teacher_channels: int,
        fuses: bool,
    ) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width)
        )
        self.attention: nn.Sequential | None = None
        if fuses:
            self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(
            nn.Conv2d(width, teacher_channels, 3, padding=1, bias=False),
            BatchNorm(teacher_channels),
        )
        for part in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(part[0].weight, a=1)  # type: ignore[arg-type]

    def forward(
        self,
        feature: Tensor,
        later: Tensor | None,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Fuse a layer with the later ones.

        Args:
            feature: of the student's layer, `(B, C, H, W)`.
            later: what the next layer passed on, `(B, width, H', W')`.
            size: height and width of the teacher's layer.

        Returns:
            The prediction of the teacher's layer, `(B, C', *size)`, and what is passed on,
            `(B, width, *size)`.
        """
        joined: Tensor = self.reduce(feature)
        if self.attention is not None:
            assert later is not None
            height, width = joined.shape[2:]
            later = F.interpolate(later, (height, width), mode="nearest")
            attention = self.attention(torch.cat([joined, later], 1))
            joined = joined * attention[:, :1] + later * attention[:, 1:]
        if joined.shape[2:] != size:
            joined = F.interpolate(joined, size, mode="nearest")
        return self.expand(joined), joined


def as_map(feature: Tensor) -> Tensor:
    """Vectors `(B, C)` as maps of one position, `(B, C, 1, 1)`; maps are returned unchanged."""
    if feature.ndim == 2:
        return feature[:, :, None, None]
    return feature


class ReviewKD(DistillLoss):
    """Each layer of the teacher is predicted from a layer of the student and all later ones.

    From the last layer to the first, a fusion joins the student's layer with the result of the
    later ones, by an attention map for each, and predicts the teacher's layer. The hierarchical
    context losses of the layers are summed.

    `weight` depends on the pair: 5 for most pairs of the CIFAR-100 benchmark, 0.6 for resnet56 and
    resnet20, 1 for resnet110 and resnet32, 8 for resnet32x4 and ShuffleNetV2; 1 for ImageNet.
    `warmup` is 20 epochs for CIFAR-100 and 1 for ImageNet.

    Batch normalization couples the samples of a batch. Several processes match one process on the
    joint batch only with `--trainer.sync_batchnorm=true`.

    Args:
        layers: roles of the student's layers, from the input to the output: maps, and at last
            vectors.
        teacher_layers: roles of the teacher's layers, as many; the authors take the maps before
            their ReLU.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if a list is empty or names a role twice, or the lists differ in length; from
            `build`, if features are neither maps nor vectors, or of different kinds.
    """

    paper: ClassVar[str] = "Chen et al. 2021, arXiv 2104.09044"
    year: ClassVar[int] = 2021
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3", "penultimate"),
        teacher_layers: Sequence[str] = (
            "preact1",
            "preact2",
            "preact3",
            "penultimate",
        ),
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layers = check_layers("ReviewKD", layers)
        self.teacher_layers = check_layers("ReviewKD", teacher_layers)
        if len(self.layers) != len(self.teacher_layers):
            raise UserError(
                f"ReviewKD: layers and teacher_layers must pair up, got {len(self.layers)} and "
                f"{len(self.teacher_layers)}"
            )
        self.fusions = nn.ModuleList()

    @property
    def student_roles(self) -> set[str]:
        """The student's layers."""
        return set(self.layers)

    @property
    def teacher_roles(self) -> set[str]:
        """The teacher's layers."""
        return set(self.teacher_layers)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create a fusion for each layer."""
        shapes: list[tuple[Size, Size]] = []
        for roles in zip(self.layers, self.teacher_layers, strict=True):
            shapes.append(shapes_of("ReviewKD", student, teacher, roles))
        # All fusions have one width, because each one reads the output of the next.
        last, _ = shapes[-1]
        width = min(MAX_CHANNELS, last[1])
        fusions = []
        for place, (own, target) in enumerate(shapes):
            # The last layer has no later one to review.
            is_last = place == len(shapes) - 1
            fusions.append(Fusion(own[1], width, target[1], fuses=not is_last))
        self.fusions = nn.ModuleList(fusions)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over the layers of `context_loss`, a scalar.

        Raises:
            UserError: before `build`.
        """
        target_output = teacher_of(self, teacher)
        if not self.fusions:
            raise not_built("ReviewKD")
        terms = []
        later: Tensor | None = None
        # From the deepest layer to the first: each one reviews what the later ones
        # found.
        for place in reversed(range(len(self.layers))):
            role = self.layers[place]
            teacher_role = self.teacher_layers[place]
            own = as_map(feature_of("ReviewKD", student, role))
            target = as_map(feature_of("ReviewKD", target_output, teacher_role))
            fusion = self.fusions[place]
            # The fusions run in the precision of their parameters, or in that of autocast.
            dtype = next(fusion.parameters()).dtype
            predicted, later = fusion(own.to(dtype), later, target.shape[2:])
            terms.append(context_loss(predicted, target))
        return torch.stack(terms).sum()
