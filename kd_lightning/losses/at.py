"""Attention transfer: Zagoruyko and Komodakis 2017."""

from __future__ import annotations

from collections.abc import Sequence
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


def attention_map(feature: Tensor) -> Tensor:
    r"""Where a layer is active: $\frac{1}{C} \sum_c A_c^2$, `(B, C, H, W)` to `(B, 1, H, W)`.

    $F^2_{sum}$ of Zagoruyko and Komodakis 2017, section 3.1; normalization cancels the factor
    $1/C$.
    """
    # Squares of half-precision activations overflow above 256.
    return full(feature).square().mean(1, keepdim=True)


def attention_loss(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""The distance between the attention maps of one layer, mean over samples.

    Let $Q$ be the flattened map of a sample, $q = Q / \|Q\|_2$, and n = H W its positions:

    - "paper": $\frac{1}{2} \|q_S - q_T\|_2$, one term of the sum in equation 2 (norm p = 2) without
      $\beta$. If sizes differ, the larger map is averaged down.
    - "benchmark": $\frac{1}{n} \|q_S - q_T\|_2^2$. If sizes differ, the larger features are
      averaged down before the map is computed.

    Args:
        student: `(B, C, H, W)`; channels and size may differ from the teacher's.
        teacher: `(B, C', H', W')`.
        convention: see above.

    Returns:
        A scalar; zero if the maps agree up to a factor. A sample without any activation has a map
        of zeros.
    """
    if convention == "paper":
        student_attention = attention_map(student)
        teacher_attention = attention_map(teacher)
        student, teacher = same_size(student_attention, teacher_attention)
    else:
        student, teacher = same_size(full(student), full(teacher))
        student = attention_map(student)
        teacher = attention_map(teacher)
    # `normalize` divides by at least 1e-12, so that a map of zeros stays zero.
    student_map = F.normalize(student.flatten(1))
    teacher_map = F.normalize(teacher.flatten(1))
    difference = student_map - teacher_map
    if convention == "paper":
        # The gradient of a norm is undefined at 0; `vector_norm` returns the gradient 0 there.
        distance: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return 0.5 * distance.mean()
    return difference.square().mean()


class AT(DistillLoss):
    r"""Attention transfer: the student learns to be active where the teacher is, over all layers.

    The terms of the layers are summed:

    - "paper": half the L2 norm of the difference of normalized maps, mean over samples. `weight` is
      the paper's beta, which it sets to 1000 / n at a layer of n positions, about 0.1 with the sum
      over a batch. Use one entry per layer for that.
    - "benchmark": mean over positions of the squared difference, mean over samples. `weight` is
      1000 for maps of 8x8 to 32x32, less for smaller ones.

    Both see only the angle between the maps: scaling either side's features changes nothing. There
    are no trainable parts.

    Args:
        layers: roles of the layers, the same for student and teacher; their maps may differ in
            channels and size.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `layers` is empty or names a role twice; from `build`, if a layer does not
            return a map of at least two positions.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        convention: Convention = "paper",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("AT", layers)
        self.convention = check_convention("AT", convention)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse layers without attention, before training; there is nothing to create."""
        for role in self.roles:
            maps = shapes_of("AT", student, teacher, (role, role), ranks=(4,))
            positions = [shape[2:].numel() for shape in maps]
            if min(positions) < 2:
                raise UserError(
                    "AT: a map of one position is always the same when normalized; "
                    f"leave out the layer {role!r}"
                )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over the layers of `attention_loss`, a scalar."""
        pairs = feature_pairs(self, student, teacher)
        terms = [attention_loss(*pair, self.convention) for pair in pairs]
        return torch.stack(terms).sum()
