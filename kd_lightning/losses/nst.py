"""Neuron selectivity transfer: Huang and Wang 2017."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    check_layers,
    feature_pairs,
    same_size,
    shapes_of,
)
from kd_lightning.losses._gather import unit
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output, full


def mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    r"""The mean of $(a^T b)^2$ over all pairs of channels, per sample.

    Args:
        first: channels as vectors over n positions, `(B, C, n)`.
        second: `(B, C', n)`.

    Returns:
        `(B,)`.
    """
    products = first @ second.transpose(1, 2)
    return products.square().mean((1, 2))


def selectivity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""The squared maximum mean discrepancy between the channels of one layer, mean over samples.

    $\frac{1}{C_T^2} \sum k(t_i, t_j) + \frac{1}{C_S^2} \sum k(s_i, s_j) - \frac{2}{C_S C_T} \sum
    k(s_i, t_j)$ with $k(a, b) = (a^T b)^2$, where every channel is a vector over positions of
    length one (Huang and Wang 2017, with the polynomial kernel, d = 2 and c = 0).

    Args:
        student: `(B, C, H, W)`; channels and size may differ from the teacher's. The larger map is
            averaged down.
        teacher: `(B, C', H', W')`.

    Returns:
        A scalar; zero if both sides have the same channels, in any order. A channel of zeros stays
        zero.
    """
    student, teacher = same_size(full(student), full(teacher))
    own = unit(student.flatten(2))
    target = unit(teacher.flatten(2))
    # The products are C x C' matrices: no tensor of C x C' x n as in public code.
    within_teacher = mean_kernel(target, target)
    within_student = mean_kernel(own, own)
    within = within_teacher + within_student
    between = mean_kernel(own, target)
    # The squared discrepancy of each sample, `(B,)`.
    discrepancy = within - 2 * between
    return discrepancy.mean()


class NST(DistillLoss):
    """Channels of the student select the same regions as those of the teacher, over all layers.

    The channels of a layer are compared as two samples of a distribution, so their numbers may
    differ and no adapter is needed. The terms of the layers are summed; `weight` is 50 in the
    CIFAR-100 benchmark. Scaling a channel changes nothing.

    The teacher's own term is constant; it stays, so that the loss of a student that equals its
    teacher is 0.

    Args:
        layers: roles of the layers, the same for student and teacher.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `layers` is empty or names a role twice; from `build`, if a layer does not
            return a map of at least two positions.
    """

    paper: ClassVar[str] = "Huang and Wang 2017, arXiv 1707.01219"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("NST", layers)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse maps of one position, before training; there is nothing to create."""
        for role in self.roles:
            maps = shapes_of("NST", student, teacher, (role, role), ranks=(4,))
            positions = [shape[2:].numel() for shape in maps]
            if min(positions) < 2:
                raise UserError(
                    "NST: all channels of a map of one position are equal when normalized; "
                    f"leave out the layer {role!r}"
                )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over the layers of `selectivity_distance`, a scalar."""
        pairs = feature_pairs(self, student, teacher)
        # Products of unit vectors, squared: half precision would lose the small differences.
        with torch.autocast(student.logits.device.type, enabled=False):
            terms = [selectivity_distance(*pair) for pair in pairs]
        return torch.stack(terms).sum()
