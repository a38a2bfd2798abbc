"""Jeffreys divergence: the mean of both KL divergences."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.losses.reversekl import reverse_kl
from kd_lightning.types import Batch, Output


class Jeffreys(DistillLoss):
    r"""$T^2 \, (\mathrm{KL}(p \,\|\, q) + \mathrm{KL}(q \,\|\, p)) / 2$.

    Half of Jeffreys' sum, so that the gradient near the teacher is that of KD. For the sum, double
    the weight. For other shares, such as 0.1 KL and 0.9 reverse KL, use `KD` and `ReverseKL` with
    these weights. A class that the teacher rules out with a logit of -inf counts in the first part
    alone; see `ReverseKL`.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Jeffreys 1946, doi 10.1098/rspa.1946.0056"
    year: ClassVar[int] = 1946
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("Jeffreys", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The mean of `soft_target_kl` and `reverse_kl` at the temperature; a scalar in nats."""
        output = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        prediction, target = output.paired_log_probs(student, self.temperature)
        # Forward KL covers all of the teacher's classes, reverse KL avoids classes it rules out.
        forward = soft_target_kl(prediction, target, self.temperature)
        reverse = reverse_kl(prediction, target, self.temperature)
        return (forward + reverse) / 2
