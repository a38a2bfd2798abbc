"""Logit standardization: Sun et al. 2024."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kd_lightning.losses.base import DistillLoss, positive, teacher_of
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.types import Batch, EnsembleOutput, Output, full, mean_log_probs

EPSILON = 1e-7
"""Added to the standard deviation, so that constant logits have z-scores of zero."""


def standardized(logits: Tensor) -> Tensor:
    r"""Z-scores over the classes: $(z - \bar z) / (\sigma(z) + 10^{-7})$ with the unbiased standard deviation.

    Args:
        logits: `(..., K)`, K at least 2.

    Returns:
        `(..., K)` in at least single precision: mean 0, standard deviation 1; all zero where the logits are constant.
    """
    z = full(logits)
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + EPSILON)


def standardized_log_probs(output: Output, temperature: float) -> Tensor:
    """Log of the distribution that a network's z-scores give at a temperature, `(B, K)`.

    Of an ensemble it is the mean of the members' distributions, each standardized by itself: the deviation is a temperature
    that every network brings along, and that a member's logits are large does not give it more of a say.
    """
    if isinstance(output, EnsembleOutput):
        return mean_log_probs(standardized(output.members), output.weights, temperature)
    return torch.log_softmax(standardized(output.logits) / temperature, dim=-1)


class LogitStandardization(DistillLoss):
    r"""Soft targets from z-scores: $T^2\,\mathrm{KL}(\mathrm{softmax}(Z(v)/T) \,\|\, \mathrm{softmax}(Z(z)/T))$.

    The student is to learn which logits are larger and by how many deviations; neither side's mean and scale matter. On
    CIFAR-100 the paper takes T = 2 and weight 9 beside 0.1 of the hard loss.

    Constant logits of the student have a finite, but large gradient: up to 1e7 times that of unit deviation.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2403.01427"
    year: ClassVar[int] = 2024
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)

    def __init__(self, temperature: float = 2.0, **base: Any) -> None:
        super().__init__(**base)
        self.temperature = positive("LogitStandardization", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        target = standardized_log_probs(teacher_of(self, teacher), self.temperature)
        return soft_target_kl(
            standardized_log_probs(student, self.temperature), target, self.temperature
        )
