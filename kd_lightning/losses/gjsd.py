"""Generalized Jensen-Shannon divergence: Agarwal et al. 2024."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    is_number,
    positive,
    teacher_of,
)
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.losses.reversekl import reverse_kl
from kd_lightning.types import Batch, Output, finite_log_probs


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    r"""$\beta\,\mathrm{KL}(p \,\|\, m) + (1 - \beta)\,\mathrm{KL}(q \,\|\, m)$, mean over rows.

    Agarwal et al. 2024, equation 1, with the mixture $m = \beta p + (1 - \beta) q$. Only
    differences of logarithms from the mixture appear. They are of the size of the divergence, so
    that little is lost to rounding where $\beta$ is close to 0 or 1.

    Args:
        student: log-probabilities $\ln q$, `(N, K)`.
        teacher: log-probabilities $\ln p$, `(N, K)`.
        beta: the teacher's share of the mixture, in (0, 1).

    Returns:
        A scalar in nats, at most the entropy of $(\beta, 1 - \beta)$; zero if both agree.
    """
    log_q = finite_log_probs(student)
    log_p = finite_log_probs(teacher)
    ratio = log_p - log_q
    log_beta = torch.full_like(ratio, math.log(beta))
    log_rest = torch.full_like(ratio, math.log1p(-beta))
    # ln(m / q) and ln(m / p).
    mixture_to_student = torch.logaddexp(ratio + log_beta, log_rest)
    mixture_to_teacher = torch.logaddexp(log_beta, log_rest - ratio)
    # KL(p || m) and KL(q || m) of each row, `(N,)`.
    from_teacher = -(log_p.exp() * mixture_to_teacher).sum(-1)
    from_student = -(log_q.exp() * mixture_to_student).sum(-1)
    # Equation 1.
    divergences = beta * from_teacher + (1 - beta) * from_student
    return divergences.mean()


class GJSD(DistillLoss):
    r"""The divergence of both networks from their mixture, in a family that joins both KLs.

    $T^2 \, \mathrm{JSD}_\beta(p, q) \, / \, (\beta (1 - \beta))$ with the mixture
    $m = \beta p + (1 - \beta) q$. The limits are KD at $\beta = 0$, $T^2\,\mathrm{KL}(p \,\|\, q)$,
    and `ReverseKL` at $\beta = 1$, $T^2\,\mathrm{KL}(q \,\|\, p)$; the loss is continuous in
    $\beta$ from one to the other, at all of them with the same second derivative at the teacher.

    Other conventions translate as follows:

    - The paper and its public code have no factor $1 / (\beta (1 - \beta))$, and define the ends as
      the two KLs although their divergence vanishes there: `weight = beta * (1 - beta)`. The
      Jensen-Shannon divergence proper is `beta = 0.5, weight = 0.25`.
    - Some code writes the student's share: 1 minus `beta`.

    Args:
        beta: the teacher's share of the mixture, in [0, 1].
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature or beta out of range.
    """

    paper: ClassVar[str] = "Agarwal et al. 2024, arXiv 2306.13649"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(
        self, beta: float = 0.5, temperature: float = 4.0, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        if not is_number(beta) or not 0 <= beta <= 1:
            raise UserError(f"GJSD: beta must be a number in [0, 1], got {beta}")
        self.beta = float(beta)
        self.temperature = positive("GJSD", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The normalized divergence at the temperature, or a KL at its ends; a scalar in nats."""
        target = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        q, p = target.paired_log_probs(student, self.temperature)
        # 0 / 0 at the ends, whose limits are known.
        if self.beta == 0:
            return soft_target_kl(q, p, self.temperature)
        if self.beta == 1:
            return reverse_kl(q, p, self.temperature)
        factor = self.temperature**2 / (self.beta * (1 - self.beta))
        return factor * jensen_shannon(q, p, self.beta)
