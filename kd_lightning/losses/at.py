"""Attention transfer: Zagoruyko and Komodakis 2017."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

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
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.types import Batch, Output, full


def attention_map(feature: Tensor) -> Tensor:
    r"""Where a layer is active: $\frac{1}{C} \sum_c A_c^2$, `(B, C, H, W)` to `(B, 1, H, W)`.

    $F^2_{sum}$ of Zagoruyko and Komodakis 2017, section 3.1; the factor $1/C$ goes when the map is normalized.
    """
    return full(feature).square().mean(1, keepdim=True)


def attention_loss(student: Tensor, teacher: Tensor, convention: Convention = "paper") -> Tensor:
    r"""The distance between the attention maps of one layer, mean over the batch.

    With $Q$ the flattened map of a sample and $q = Q / \|Q\|_2$, of n = H W positions:

    - "paper": $\frac{1}{2} \|q_S - q_T\|_2$, one term of the sum in equation 2 (with its norm p = 2), without $\beta$. Where
      sizes differ, the larger map is averaged down.
    - "benchmark": $\frac{1}{n} \|q_S - q_T\|_2^2$. Where sizes differ, the larger features are averaged down, before the map.

    Args:
        student: `(B, C, H, W)`; channels and size may differ from the teacher's.
        teacher: `(B, C', H', W')`.
        convention: see above.

    Returns:
        A scalar; zero where the maps agree up to a factor. A sample without any activation has the map 0.
    """
    if convention == "paper":
        student, teacher = same_size(attention_map(student), attention_map(teacher))
    else:
        student, teacher = (
            attention_map(feature) for feature in same_size(full(student), full(teacher))
        )
    difference = F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))
    if convention == "paper":
        distance: Tensor = torch.linalg.vector_norm(
            difference, dim=1
        )  # whose gradient at 0 is 0 here
        return 0.5 * distance.mean()
    return difference.square().mean()


class AT(DistillLoss):
    r"""Attention transfer: the student is to be active where the teacher is, summed over layers.

    | convention | each layer | `weight` |
    | --- | --- | --- |
    | "paper" | half the L2 norm of the difference of normalized maps, mean over samples | the paper's beta; it sets 1000 / n at a layer of n positions, about 0.1 with the sum over a batch: one entry a layer |
    | "benchmark" | mean over positions of the squared difference, mean over samples | 1000, for maps of 8x8 to 32x32; less for smaller ones |

    Both see the angle between the maps alone: scaling either side's features changes nothing. There is nothing to train.

    Args:
        layers: roles of the layers, the same for student and teacher; their maps may differ in channels and size.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: where `layers` names none or one twice; from `build`, where a layer gives no map of at least two positions.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        convention: Convention = "paper",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("AT", layers)
        self.convention = check_convention("AT", convention)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Nothing to make; layers that hold no attention are refused before training."""
        for role in self.roles:
            maps = shapes_of("AT", student, teacher, (role, role), ranks=(4,))
            if min(shape[2:].numel() for shape in maps) < 2:
                raise UserError(
                    f"AT: a map of one position is always the same when normalized; leave out the layer {role!r}"
                )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        pairs = feature_pairs(self, student, teacher)
        return torch.stack([attention_loss(*pair, self.convention) for pair in pairs]).sum()
