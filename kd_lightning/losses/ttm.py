"""Transformed teacher matching: Zheng and Yang 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output, finite_log_probs


def transformed_kl(
    student: Tensor,
    teacher: Tensor,
    gamma: float,
    weighted: bool = False,
) -> Tensor:
    r"""$\mathrm{KL}(\tilde p \,\|\, q)$ with $\tilde p_k = p_k^\gamma / U$, mean over rows.

    Zheng and Yang 2024, with $U = \sum_k p_k^\gamma$.

    Args:
        student: log-probabilities $\ln q$ at temperature 1, `(N, K)`.
        teacher: log-probabilities $\ln p$ at temperature 1, `(N, K)`.
        gamma: the exponent, greater than 0.
        weighted: multiply each row's KL by its U.

    Returns:
        A scalar in nats; zero if the student's logits are the teacher's times gamma.
    """
    # ln p^gamma, `(N, K)`; the softmax divides by U.
    powers = gamma * teacher
    log_p = finite_log_probs(torch.log_softmax(powers, dim=-1))
    log_q = finite_log_probs(student)
    terms = log_p.exp() * (log_p - log_q)
    divergences = terms.sum(-1)
    if weighted:
        # U of each row, `(N,)`: the larger, the less sure the teacher is.
        weights = powers.logsumexp(-1).exp()
        divergences = weights * divergences
    return divergences.mean()


class TTM(DistillLoss):
    r"""KD without a temperature on the student: $\mathrm{KL}(\tilde p \,\|\, q)$.

    Only the teacher's distribution is flattened: $\tilde p_k = p_k^\gamma / \sum_j p_j^\gamma$,
    which for one network is the temperature $T = 1 / \gamma$. The student stays at temperature 1,
    and there is no factor $T^2$. In effect, KD gains a penalty on confident students. The minimum
    is a student with $\gamma$ times the teacher's logits, not the teacher itself.

    WTTM, the weighted form, multiplies each sample's loss by $U = \sum_k p_k^\gamma$, which is
    larger for a teacher that is less sure.

    The total is `CE + b * TTM`. The authors' example for vgg13-vgg8 on CIFAR-100 has
    $\gamma = 0.1$ and b = 45; that of WTTM next to CRD has $\gamma = 0.2$ and b = 4.

    Args:
        gamma: the exponent of the teacher's probabilities, greater than 0.
        weighted: WTTM instead of TTM.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a gamma that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Zheng and Yang 2024, arXiv 2402.11148"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True

    def __init__(
        self, gamma: float = 0.1, weighted: bool = False, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        self.gamma = positive("TTM", "gamma", gamma)
        self.weighted = weighted

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`transformed_kl` of both distributions; a scalar in nats."""
        target = teacher_of(self, teacher).log_probs()
        return transformed_kl(student.log_probs(), target, self.gamma, self.weighted)
