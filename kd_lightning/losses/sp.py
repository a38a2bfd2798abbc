"""Similarity-preserving distillation: Tung and Mori 2019."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses._adapters import check_role, feature_pairs
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver
from kd_lightning.types import Batch, Output, full


def similarities(feature: Tensor) -> Tensor:
    r"""Similarities of a batch's samples: $G = F F^T$ with rows of length one.

    Tung and Mori 2019, section 3; F are the flattened features. A sample whose features are all
    zero has a row of zeros.

    Args:
        feature: `(B, ...)`.

    Returns:
        `(B, B)`.
    """
    # Sums over all features of a sample need single precision, also under autocast.
    with torch.autocast(feature.device.type, enabled=False):
        flat = full(feature).flatten(1)
        # `(B, B)`: every sample's inner products with all others.
        products = flat @ flat.T
        return unit(products)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{B^2} \|\tilde G_S - \tilde G_T\|_F^2$ (Tung and Mori 2019, section 3).

    Args:
        student: `(B, ...)`.
        teacher: `(B, ...)`; all other dimensions may differ.

    Returns:
        A scalar; zero if both sides have the same similarities, for example if their features are
        equal up to one factor or a rotation.
    """
    # The mean over B * B entries is the paper's squared Frobenius norm over B^2.
    own = similarities(student)
    target = similarities(teacher)
    return (own - target).square().mean()


class SP(DistillLoss):
    r"""Pairs of samples that are similar for the teacher become similar for the student.

    $\frac{1}{B^2} \|\tilde G_S - \tilde G_T\|_F^2$ over the joint batch of all processes, where
    $\tilde G$ is $F F^T$ with rows of length one. There are no trainable parts. One factor on all
    features of a side changes nothing; a factor on a single sample does, because that sample is a
    column of every other row. The paper and the CIFAR-100 benchmark share the formula and the last
    feature map; the benchmark's weight is 3000.

    Args:
        layer: role of the layer, the same for student and teacher; the shapes may differ.
        base: weight, start, end, warmup; see `DistillLoss`.
    """

    paper: ClassVar[str] = "Tung and Mori 2019, arXiv 1907.09682"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(self, layer: str = "stage3", **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.roles = [check_role("SP", "layer", layer)]

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`similarity_loss` over the joint batch of all processes, a scalar."""
        [(own, target)] = feature_pairs(self, student, teacher)
        joined = JoinedBatch(batch)
        return similarity_loss(joined(own), joined(target))
