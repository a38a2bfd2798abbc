"""The flow of the solution procedure: Yim et al. 2017."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    check_convention,
    check_layers,
    feature_pairs,
    same_size,
    shapes_of,
)
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output, full


def flow_matrix(
    lower: Tensor,
    upper: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""$G_{ij} = \frac{1}{n} \sum_x F^1_i(x) F^2_j(x)$ over n positions: how a network goes on.

    Yim et al. 2017.

    Args:
        lower: an earlier layer, `(B, C, H, W)`.
        upper: a later layer of the same network, `(B, C', H', W')`.
        convention: how the larger map is brought to the size of the smaller one: by its maxima
            ("paper") or its means ("benchmark").

    Returns:
        `(B, C, C')`.
    """
    lower = full(lower)
    upper = full(upper)
    if convention == "paper":
        # Products need equal positions: the larger map is pooled to the smaller one.
        height = min(lower.shape[2], upper.shape[2])
        width = min(lower.shape[3], upper.shape[3])
        lower = F.adaptive_max_pool2d(lower, (height, width))
        upper = F.adaptive_max_pool2d(upper, (height, width))
    else:
        lower, upper = same_size(lower, upper)
    positions = lower.shape[2:].numel()
    flow: Tensor = lower.flatten(2) @ upper.flatten(2).transpose(1, 2)
    return flow / positions


def flow_distance(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""The squared distance between flow matrices.

    - "paper": $\|G_S - G_T\|_F^2$, mean over samples, with equal weights of the pairs.
    - "benchmark": the mean over all entries.

    Args:
        student: `(B, C, C')`.
        teacher: the same shape.
        convention: see above.

    Returns:
        A scalar; zero if both agree.
    """
    squares = (student - teacher).square()
    if convention == "paper":
        return squares.sum((1, 2)).mean()
    return squares.mean()


class FSP(DistillLoss):
    """The student goes from layer to layer as the teacher does: flow matrices, over all pairs.

    Each layer forms a pair with the next; the terms of the pairs are summed. There are no adapters:
    student and teacher must have equal channels at every layer, while sizes may differ.

    - "paper": the sum over entries, mean over samples, maxima to equalize sizes. The paper trains
      with this loss alone first (`configs/methods/fsp_init.yaml`), then without it, from the first
      run's `last.ckpt` (`--model.init_from`).
    - "benchmark": the mean over entries, and means to equalize sizes. Its weight of 50 is without
      effect: its main stage multiplies it by zero, and only an initial stage of 30 epochs uses the
      loss.

    The paper's is the default, as its two stages are those of the benchmark too.

    Args:
        layers: two or more roles, from the input to the output, the same for student and teacher.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `layers` has fewer than two roles or one twice; from `build`, if a layer does
            not return a map, or channels differ.
    """

    paper: ClassVar[str] = "Yim et al. 2017, CVPR"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stem", "stage1", "stage2", "stage3"),
        convention: Convention = "paper",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("FSP", layers)
        if len(self.roles) < 2:
            raise UserError(
                f"FSP: layers must name two roles or more, got {list(layers)}"
            )
        self.convention = check_convention("FSP", convention)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse networks of different channels; there is nothing to create."""
        for role in self.roles:
            own, target = shapes_of("FSP", student, teacher, (role, role), ranks=(4,))
            # Flow matrices of other channels have another size, and FSP has no adapter.
            if own[1] != target[1]:
                raise UserError(
                    f"FSP needs equal channels; at the layer {role!r} the student has {own[1]} "
                    f"and the teacher {target[1]}"
                )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over pairs of layers of `flow_distance`, a scalar."""
        layers = feature_pairs(self, student, teacher)
        terms = []
        # Sums over positions need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            for (own_lower, lower), (own_upper, upper) in pairwise(layers):
                own = flow_matrix(own_lower, own_upper, self.convention)
                target = flow_matrix(lower, upper, self.convention)
                terms.append(flow_distance(own, target, self.convention))
        return torch.stack(terms).sum()
