"""Activation boundaries: Heo et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

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
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe, positive
from kd_lightning.types import Batch, Output, full

SCALE = 3 / 1000
"""The factor of the authors' code, which brings the sum over elements near a cross-entropy."""


def boundary_distance(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    r"""A squared hinge that asks the student for the teacher's side of each boundary.

    $\sum (s + \mu)^2$ over the elements with t <= 0 and s > $-\mu$, plus $\sum (s - \mu)^2$ over
    those with t > 0 and s <= $\mu$, mean over samples (Heo et al. 2019).

    Args:
        student: s before its ReLU, `(B, C, H, W)`.
        teacher: t, before or after its ReLU, the same shape: only whether it is positive counts.
        margin: $\mu$, greater than 0.

    Returns:
        A scalar; zero if each element of the student is beyond the margin on the teacher's side.
    """
    student = full(student)
    active = full(teacher) > 0
    # The distance to the margin on the teacher's side, zero beyond it.
    missing = torch.where(active, margin - student, margin + student).clamp(min=0)
    return missing.square().flatten(1).sum(1).mean()


class AB(DistillLoss):
    """The student's neurons are active where the teacher's are, whatever their values.

    A connector (1x1 convolution and batch norm) maps the student's layer to the teacher's channels.
    The terms of the layers have the weights 1, 1/2, 1/4, ... from the last one back, and all are
    multiplied by 3/1000, as in the authors' code.

    The paper uses the loss alone in an initial stage, `configs/methods/ab_init.yaml`, and then
    trains without it, by cross-entropy or KD, from the first run's `last.ckpt`
    (`--model.init_from`).

    A student that equals its teacher is no minimum: a neuron that is barely active misses the
    margin. The teacher stays in eval mode; the authors' code has it in train mode.

    Args:
        layers: roles of layers before their ReLU, the same for student and teacher. The larger map
            is averaged down.
        margin: how far from the boundary the student's values should be.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `layers` is empty or names a role twice, or the margin is not positive; from
            `build`, if a layer does not return a map.
    """

    paper: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("preact1", "preact2", "preact3"),
        margin: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("AB", layers)
        self.margin = positive("AB", "margin", margin)
        self.connectors = nn.ModuleList()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the connectors."""
        connectors = []
        for role in self.roles:
            own, target = shapes_of("AB", student, teacher, (role, role), ranks=(4,))
            connectors.append(connector(own[1], target[1]))
        self.connectors = nn.ModuleList(connectors)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum over the layers of `boundary_distance`, a scalar.

        Raises:
            UserError: before `build`.
        """
        pairs = feature_pairs(self, student, teacher)
        if not self.connectors:
            raise not_built("AB")
        terms = []
        for layer, (own, target) in zip(self.connectors, pairs, strict=True):
            own, target = same_size(own, target)
            terms.append(boundary_distance(adapted(layer, own), target, self.margin))
        return SCALE * halved_from_the_last(terms)
