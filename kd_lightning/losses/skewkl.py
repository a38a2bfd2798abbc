"""Skew KL divergence: Ko et al. 2024 (DistiLLM)."""

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
from kd_lightning.types import Batch, Output, finite_log_probs


def skew_kl(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    r"""$\mathrm{KL}(a \,\|\, \alpha a + (1 - \alpha) b)$, summed over classes, mean over rows.

    Ko et al. 2024, equation 4. Only the difference of the logarithms appears, so that nothing is
    lost where both distributions nearly agree, and the result is finite wherever $\alpha > 0$.

    Args:
        first: log-probabilities $\ln a$, `(N, K)`.
        second: log-probabilities $\ln b$, `(N, K)`.
        alpha: the share of `first` in the mixture, in (0, 1).

    Returns:
        A scalar in nats, at most $-\ln \alpha$; zero if both agree.
    """
    log_a = finite_log_probs(first)
    log_b = finite_log_probs(second)
    ratio = log_b - log_a
    log_share = torch.full_like(ratio, math.log(alpha))
    log_rest = torch.full_like(ratio, math.log1p(-alpha))
    # ln(mixture / a).
    mixture_to_first = torch.logaddexp(log_share, log_rest + ratio)
    divergence = -(log_a.exp() * mixture_to_first).sum(-1)
    return divergence.mean()


class SkewKL(DistillLoss):
    r"""$T^2\,\mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q)$: KL to a mixture of both networks.

    The mixture bounds the gradient where the student gives a likely token hardly any probability.
    With `reverse`, the loss is $T^2\,\mathrm{KL}(q \,\|\, (1 - \alpha) p + \alpha q)$, the paper's
    skew reverse KL. With $\alpha \to 0$, these are `KD` and `ReverseKL`.

    The factor $T^2$ is ours, for comparison with KD; at the default T = 1 it has no effect. The
    public code leaves out the term $p \ln p$ of the first form, which changes no gradient, but
    leaves a value other than 0 where both networks agree. The paper's further part, a buffer of
    sentences that the student generates, is not included.

    Args:
        alpha: the share of the divergence's own distribution in the mixture, in (0, 1).
        reverse: the divergence of the student's distribution instead of the teacher's.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature or alpha out of range.
    """

    paper: ClassVar[str] = "Ko et al. 2024, arXiv 2402.03898"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 0.1,
        reverse: bool = False,
        temperature: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if not is_number(alpha) or not 0 < alpha < 1:
            raise UserError(f"SkewKL: alpha must be a number in (0, 1), got {alpha}")
        self.alpha = float(alpha)
        self.reverse = reverse
        self.temperature = positive("SkewKL", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`skew_kl` at the temperature, times T^2; a scalar in nats."""
        target = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        log_q, log_p = target.paired_log_probs(student, self.temperature)
        if self.reverse:
            divergence = skew_kl(log_q, log_p, self.alpha)
        else:
            divergence = skew_kl(log_p, log_q, self.alpha)
        return self.temperature**2 * divergence
