"""Total variation distance between a student's and a teacher's classes: Wen et al. 2023."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{2} \sum_k |p_k - q_k|$, mean over rows.

    Args:
        student: log-probabilities, `(N, K)`.
        teacher: log-probabilities, `(N, K)`.

    Returns:
        A scalar in [0, 1]; zero if both agree.
    """
    teacher_probs = teacher.exp()
    student_probs = student.exp()
    differences = (teacher_probs - student_probs).abs()
    # Half, because probability missing at one class is too much at another.
    return differences.sum(-1).mean() / 2


class TotalVariation(DistillLoss):
    r"""$\frac{1}{2} \sum_k |p_k - q_k|$: half the absolute difference between probabilities.

    It treats both networks alike, and it is bounded: an outlier costs at most 1. The gradient does
    not shrink with the distance; at the teacher itself it is zero. There is no factor of the
    temperature.

    Args:
        temperature: T, greater than 0, of both distributions.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Wen et al. 2023, arXiv 2307.15190"
    year: ClassVar[int] = 2023
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("TotalVariation", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`total_variation` of both distributions at the temperature, a scalar."""
        output = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        log_q, log_p = output.paired_log_probs(student, self.temperature)
        return total_variation(log_q, log_p)
