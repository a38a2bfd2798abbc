"""Logit standardization: Sun et al. 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.types import Batch, EnsembleOutput, Output, full, mean_log_probs

EPSILON = 1e-7
"""Added to the standard deviation, so that constant logits have z-scores of zero."""


def standardized(logits: Tensor) -> Tensor:
    r"""Z-scores over the classes: $(z - \bar z) / (\sigma(z) + 10^{-7})$, $\sigma$ unbiased.

    Args:
        logits: `(..., K)`, K at least 2.

    Returns:
        `(..., K)` in at least single precision: mean 0 and standard deviation 1, or all zeros if
        the logits are constant.
    """
    z = full(logits)
    mean = z.mean(-1, keepdim=True)
    # `std` divides by K - 1, as in the authors' code. EPSILON is outside the root, as there.
    deviation = z.std(-1, keepdim=True)
    return (z - mean) / (deviation + EPSILON)


def standardized_log_probs(output: Output, temperature: float) -> Tensor:
    """Log of the distribution given by a network's z-scores at a temperature: `(N, K)`.

    For an ensemble, each member is standardized by itself before the distributions are averaged, so
    that a member with larger logits does not get more influence.
    """
    if isinstance(output, EnsembleOutput):
        # `(N, M, K)` for M members: the statistics are over the last dimension only.
        members = standardized(output.members)
        return mean_log_probs(members, output.weights, temperature)
    scores = standardized(output.logits)
    return torch.log_softmax(scores / temperature, dim=-1)


class LogitStandardization(DistillLoss):
    r"""KD of z-scores: $T^2\,\mathrm{KL}(\mathrm{softmax}(Z(v)/T) \,\|\, \mathrm{softmax}(Z(z)/T))$

    The student learns the order of the logits and their distances in standard deviations; the mean
    and the scale of either side do not matter. On CIFAR-100 the paper uses T = 2 and weight 9, next
    to a hard loss of weight 0.1.

    If the student's logits are constant, the gradient is finite but up to 1e7 times as large as at
    unit deviation.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2403.01427"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 2.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("LogitStandardization", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`soft_target_kl` between the distributions given by the z-scores; a scalar in nats."""
        target = standardized_log_probs(teacher_of(self, teacher), self.temperature)
        prediction = standardized_log_probs(student, self.temperature)
        return soft_target_kl(prediction, target, self.temperature)
