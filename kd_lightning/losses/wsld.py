"""Weighted soft labels: Zhou et al. 2021."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses._labels import mean_over_labels, own_class
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs

EPSILON = 1e-7
"""Added to the teacher's cross-entropy, as in the authors' code."""


def sample_weights(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    r"""$1 - \exp(-\mathrm{CE}_s / \mathrm{CE}_t)$: small where the student knows the label better.

    Zhou et al. 2021. Constants: no gradient passes through them.

    Args:
        student: log-probabilities at temperature 1, `(N, K)`.
        teacher: log-probabilities at temperature 1, `(N, K)`.
        target: int64 `(N,)`, never `UNLABELLED`.

    Returns:
        `(N,)` in [0, 1].
    """
    # Cross-entropies with the label, `(N,)`.
    student_cost = -own_class(student.detach(), target)
    teacher_cost = -own_class(teacher, target)
    ratio = student_cost / (teacher_cost + EPSILON)
    # `expm1` keeps the digits of a small ratio, which 1 - exp would lose.
    return -torch.expm1(-ratio)


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$-\sum_k p_k \ln q_k$ of each row, in nats, `(N,)`, from log-probabilities `(N, K)`."""
    terms = teacher.exp() * finite_log_probs(student)
    return -terms.sum(-1)


class WSLD(DistillLoss):
    r"""Soft targets, weighted by sample: $T^2 \, w_i \, (-\sum_k p_k \ln q_k)$.

    $w = 1 - \exp(-\mathrm{CE}_s / \mathrm{CE}_t)$ from the cross-entropies of both networks with
    the label, at temperature 1 and without a gradient. Samples that the student knows better than
    the teacher are regularized least.

    As in the paper, the soft loss is the cross-entropy and not KL, whose gradient is the same: the
    value at the teacher is its entropy times the weight, and not 0. The authors' weights are 2.25
    at T = 4 on CIFAR-100, 2.5 at T = 2 on ImageNet, next to the full hard loss.

    The mean is over labelled rows. The paper does not define the weight of a mixed sample; here it
    costs what each of its labels would cost, by their shares.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Zhou et al. 2021, arXiv 2102.00650"
    year: ClassVar[int] = 2021
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")
    exact_logits: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(self, temperature: float = 4.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("WSLD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted soft cross-entropy, mean over labelled rows; a scalar in nats."""
        target = teacher_of(self, teacher)
        p = target.log_probs()
        q = student.log_probs()
        # The cost is tempered; the weights compare both networks as they predict, at T = 1.
        tempered_q = student.log_probs(self.temperature)
        tempered_p = target.log_probs(self.temperature)
        costs = soft_cross_entropy(tempered_q, tempered_p)

        def cost(labels: Tensor) -> Tensor:
            return sample_weights(q, p, labels) * costs

        return mean_over_labels(cost, batch, self.temperature**2)
