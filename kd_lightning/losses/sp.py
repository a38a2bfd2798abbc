"""Similarity-preserving distillation: Tung and Mori 2019."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kd_lightning.losses._adapters import check_role, feature_pairs
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import DistillLoss
from kd_lightning.types import Batch, Output, full


def similarities(feature: Tensor) -> Tensor:
    r"""How alike the samples of a batch are: $G = F F^T$ with each row at length one, `(B, ...)` to `(B, B)`.

    Tung and Mori 2019, section 3; F are the flattened features. A sample whose features are all zero has a row of zeros.
    """
    with torch.autocast(feature.device.type, enabled=False):
        flat = full(feature).flatten(1)
        return unit(flat @ flat.T)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{B^2} \|\tilde G_S - \tilde G_T\|_F^2$ (Tung and Mori 2019, section 3, one pair of layers).

    Args:
        student: `(B, ...)`.
        teacher: `(B, ...)`, the rest of its shape free.

    Returns:
        A scalar; zero where both see the same similarities: features equal, or up to one factor or a rotation.
    """
    return (similarities(student) - similarities(teacher)).square().mean()


class SP(DistillLoss):
    r"""Pairs of samples that are alike to the teacher are to be alike to the student.

    $\frac{1}{B^2} \|\tilde G_S - \tilde G_T\|_F^2$ over the batch of all processes, $\tilde G = F F^T$ with rows at length one;
    nothing to train. One factor on all of a side's features changes nothing; one on a single sample's does, since that
    sample is a column of every other's row. The paper and the CIFAR-100 benchmark share the formula and the last feature
    map; the benchmark's weight is 3000.

    Args:
        layer: role of the layer, the same for student and teacher; the shapes are free.
        base: weight, start, end, warmup; see DistillLoss.
    """

    paper: ClassVar[str] = "Tung and Mori 2019, arXiv 1907.09682"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(self, layer: str = "stage3", **base: Any) -> None:
        super().__init__(**base)
        self.roles = [check_role("SP", "layer", layer)]

    def counted(self, batch: Batch) -> Tensor:
        """One: every process returns the joined batch's loss."""
        return batch.target.new_tensor(1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        (own, known), joined = feature_pairs(self, student, teacher)[0], JoinedBatch(batch)
        return similarity_loss(joined(own), joined(known))
