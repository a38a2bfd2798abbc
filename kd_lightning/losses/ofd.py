"""The overhaul of feature distillation: Heo et al. 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_layers,
    connector,
    feature_pairs,
    halved_from_the_last,
    not_built,
    same_size,
    shapes_of,
)
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output, full

RARELY_NEGATIVE = 0.001
"""Below this probability of a negative value its mean is not computed, as in the authors' code."""


def negative_mean(scale: Tensor, shift: Tensor) -> Tensor:
    r"""The mean of the negative values of a normal variable, per channel.

    $m = \beta - |\gamma| \frac{\varphi(\beta / \gamma)}{\Phi(-\beta / |\gamma|)}$ (Heo et al.
    2019), and $-3 |\gamma|$ if a value is negative with probability 0.001 or less.

    Args:
        scale: $\gamma$, the standard deviation, `(C,)`.
        shift: $\beta$, the mean, `(C,)`.

    Returns:
        `(C,)`, at most 0.
    """
    deviation = scale.abs().double()
    mean = shift.double()
    # A channel without deviation is constant; the ratio's sign decides whether it is negative.
    ratio = mean / deviation.clamp(min=1e-12)
    probability = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    expected = mean - deviation * density / probability.clamp(min=RARELY_NEGATIVE)
    margin = torch.where(probability > RARELY_NEGATIVE, expected, -3 * deviation)
    return margin.to(scale.dtype)


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    r"""The squared distance where it matters after a ReLU, summed over elements, mean over samples.

    With $t' = \max(t, m_c)$: $\sum (s - t')^2$ over the elements with s > t' or t > 0. An element
    that is negative on both sides and further below in the student costs nothing.

    Args:
        student: s before its ReLU, `(B, C, H, W)`.
        teacher: t before its ReLU, the same shape.
        margin: m, `(C,)`, at most 0.

    Returns:
        A scalar.
    """
    student = full(student)
    teacher = full(teacher)
    target = torch.maximum(teacher, full(margin).view(-1, 1, 1))
    counts = (student > target) | (teacher > 0)
    squares = (student - target).square()
    # `where` and not a product: what does not count must not turn into inf * 0.
    counted = torch.where(counts, squares, 0)
    per_sample = counted.flatten(1).sum(1)
    return per_sample.mean()


class OFD(DistillLoss):
    r"""Features before their ReLU, compared where they pass it or should not.

    A connector (1x1 convolution and batch norm) maps the student's layer to the teacher's channels.
    Negative values of the teacher carry little information, so they are cut off at a margin: their
    mean per channel, which follows from the batch norm before the ReLU. The terms of the layers
    have the weights 1, 1/2, 1/4, ... from the last one back; `weight` is 1e-3 for CIFAR and 1e-4
    for ImageNet.

    The distance is a sum over elements: choose `weight` for the size of the maps. The minimum, 0,
    is not only where student and teacher are equal. The teacher stays in eval mode; in the authors'
    code it trains its batch statistics.

    Args:
        layers: roles of layers before their ReLU, the same for student and teacher. The larger map
            is averaged down.
        norms: roles of the teacher's batch norms whose output each of these layers is, or whose
            output is added to a shortcut there. `null`: each layer is a batch norm itself, or is
            taken after its ReLU; the margin is then 0, which cuts off every negative value.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `layers` is empty or names a role twice, or `norms` has another number of
            roles; from `build`, if a layer does not return a map or a norm is no batch norm of its
            channels.
    """

    paper: ClassVar[str] = "Heo et al. 2019, arXiv 1904.01866"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "teacher batch norms")
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("preact1", "preact2", "preact3"),
        norms: Sequence[str] | None = ("norm1", "norm2", "norm3"),
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("OFD", layers)
        self.norms = None if norms is None else check_layers("OFD", norms)
        if self.norms is not None and len(self.norms) != len(self.roles):
            raise UserError(
                f"OFD: norms must name one batch norm per layer, got {len(self.norms)} for "
                f"{len(self.roles)} layers"
            )
        self.connectors = nn.ModuleList()

    @property
    def teacher_roles(self) -> set[str]:
        """The layers, and the batch norms."""
        return {*self.roles, *(self.norms or [])}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the connectors, and compute the margins from the teacher's batch norms."""
        connectors = []
        for place, role in enumerate(self.roles):
            own, target = shapes_of("OFD", student, teacher, (role, role), ranks=(4,))
            connectors.append(connector(own[1], target[1]))
            assert teacher is not None
            # Buffers, so that a resumed run does not depend on the teacher's file for them.
            margin = self._margin(teacher, place, target[1])
            self.register_buffer(f"margin{place}", margin)
        self.connectors = nn.ModuleList(connectors)

    def _margin(self, teacher: Probe, place: int, channels: int) -> Tensor:
        """The margin of a layer, `(C,)`."""
        role = self.roles[place] if self.norms is None else self.norms[place]
        norm = teacher.modules.get(role)
        if (
            isinstance(norm, nn.BatchNorm2d)
            and norm.num_features == channels
            and norm.affine
        ):
            return negative_mean(norm.weight.detach(), norm.bias.detach())
        if self.norms is None:
            return torch.zeros(channels)
        raise UserError(
            f"OFD: the teacher's layer {role!r} is a {type(norm).__name__}, not the batch norm of "
            f"{channels} channels before the ReLU; name it, or set norms to null for margins of 0"
        )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum over the layers of `partial_distance`, a scalar.

        Raises:
            UserError: before `build`.
        """
        pairs = feature_pairs(self, student, teacher)
        if not self.connectors:
            raise not_built("OFD")
        terms = []
        for place, (own, target) in enumerate(pairs):
            own, target = same_size(own, target)
            mapped = adapted(self.connectors[place], own)
            margin = self.get_buffer(f"margin{place}")
            terms.append(partial_distance(mapped, target, margin))
        return halved_from_the_last(terms)
