"""Probabilistic knowledge transfer: Passalis and Tefas 2018."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses._adapters import (
    Convention,
    check_convention,
    check_role,
    feature_pairs,
)
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver
from kd_lightning.types import Batch, Output, full

FLOOR = 1e-7
"""The smallest probability, and the smallest sum of similarities, that the loss distinguishes."""


def neighbors(feature: Tensor, convention: Convention = "paper") -> Tensor:
    r"""How probably each sample picks each other one as its neighbor, by cosine similarity.

    The similarity is $(\cos + 1) / 2$, in [0, 1] (Passalis and Tefas 2018, section 3). A sample
    whose features are all zero is at a right angle to all others, and to itself.

    Args:
        feature: `(B, ...)`.
        convention: "paper": no sample is its own neighbor; "benchmark": each is.

    Returns:
        Probabilities `(B, B)`: rows sum to one. A row is zero if all other samples point in the
        opposite direction, and for the only sample of a batch, in convention "paper".
    """
    # A distribution over the batch needs single precision, also under autocast.
    with torch.autocast(feature.device.type, enabled=False):
        direction = unit(full(feature).flatten(1))
        # Rounding can take a cosine a little below -1.
        cosine = direction @ direction.T
        similarity = ((cosine + 1) / 2).clamp(min=0)
        if convention == "paper":
            # A factor of 0 on the diagonal: no sample is its own neighbor.
            identity = torch.eye(
                len(similarity), dtype=similarity.dtype, device=feature.device
            )
            similarity = similarity * (1 - identity)
        row_sums = similarity.sum(1, keepdim=True)
        return similarity / row_sums.clamp(min=FLOOR)


def neighbor_divergence(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""KL divergence from the teacher's to the student's `neighbors`.

    Probabilities below 1e-7 count as 1e-7 in logarithms. The authors' code adds that number
    instead, which moves the minimum away from the teacher by about as much.

    Args:
        student: `(B, ...)`.
        teacher: `(B, ...)`; all other dimensions may differ.
        convention: "paper": the sum over all pairs of different samples (Passalis and Tefas 2018,
            section 3); "benchmark": the mean over all B^2 entries.

    Returns:
        A scalar in nats; zero if both sides have the same cosines.
    """
    own = neighbors(student, convention)
    target = neighbors(teacher, convention)
    log_target = target.clamp(min=FLOOR).log()
    log_own = own.clamp(min=FLOOR).log()
    # The terms of KL, `(B, B)`.
    terms = target * (log_target - log_own)
    return terms.sum() if convention == "paper" else terms.mean()


class PKT(DistillLoss):
    r"""Samples are as probably each other's neighbors for the student as for the teacher.

    The divergence between the distributions over neighbors, over the joint batch of all processes.
    There are no trainable parts, and features of different sizes need none. A positive factor on
    any sample changes nothing.

    - "paper": a sample is not its own neighbor, and divergences are summed over samples, so that
      the loss grows with the batch.
    - "benchmark" (the authors' code and the CIFAR-100 benchmark's): a sample is its own nearest
      neighbor, and the mean is over B^2 entries: the mean divergence of a sample, over B. The
      benchmark's weight 30000 belongs to batches of 64 samples.

    Args:
        layer: role of the layer, the same for student and teacher; its features are flattened.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for an unknown convention, or a layer that is not a string.
    """

    paper: ClassVar[str] = "Passalis and Tefas 2018, arXiv 1803.10837"
    year: ClassVar[int] = 2018
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        layer: str = "penultimate",
        convention: Convention = "paper",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = [check_role("PKT", "layer", layer)]
        self.convention = check_convention("PKT", convention)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`neighbor_divergence` over the joint batch of all processes, a scalar."""
        [(own, target)] = feature_pairs(self, student, teacher)
        joined = JoinedBatch(batch)
        return neighbor_divergence(joined(own), joined(target), self.convention)
