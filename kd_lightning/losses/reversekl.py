"""Reverse KL divergence between a student's and a teacher's classes."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output, finite_log_probs


def given_possible(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's distribution, given that it is a class which the teacher does not rule out.

    Args:
        student: log-probabilities, `(N, K)`.
        teacher: log-probabilities, `(N, K)`; -inf for a class that is ruled out.

    Returns:
        Log-probabilities `(N, K)`; the student's own where no class of a row is ruled out.
    """
    impossible = teacher == -torch.inf
    # A large finite number instead of -inf: the backward pass multiplies it by zero.
    lowest = torch.finfo(student.dtype).min
    rest = student.masked_fill(impossible, lowest)
    conditional = finite_log_probs(torch.log_softmax(rest, dim=-1))
    # Rows without a ruled-out class stay as they are, to the bit.
    has_impossible = impossible.any(-1, keepdim=True)
    return torch.where(has_impossible, conditional, student)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""$T^2 \, \mathrm{KL}(q \,\|\, p)$, summed over classes, mean over rows, in nats.

    Infinite wherever the teacher rules out a class with a logit of -inf and the student does not.
    Such a class is left out: the student is compared given that it is one of the others.

    Args:
        student: log-probabilities $\ln q$ at the temperature, `(N, K)`.
        teacher: log-probabilities $\ln p$ at the temperature, `(N, K)`.
        temperature: T.

    Returns:
        A scalar; zero if both agree.
    """
    possible = given_possible(student, teacher)
    log_q = finite_log_probs(possible)
    log_p = finite_log_probs(teacher)
    # Torch's argument order: KL of the second from the first.
    divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class ReverseKL(DistillLoss):
    r"""$T^2\,\mathrm{KL}(q \,\|\, p)$: the student avoids what its teacher finds unlikely.

    KD's $\mathrm{KL}(p \,\|\, q)$ makes the student cover every class of its teacher. The reverse
    lets it ignore some and punishes probability where the teacher has none. A student that is too
    small to cover all of a language model's tokens generates better text with it (MiniLLM, which
    estimates it over whole sequences; this loss is its term for one position).

    With a cache of the largest teacher logits, all other classes are one event. The student then
    avoids giving them more probability in total than its teacher does, but may choose among them.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Gu et al. 2024, arXiv 2306.08543"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("ReverseKL", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`reverse_kl` of both distributions at the temperature; a scalar in nats."""
        output = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        prediction, target = output.paired_log_probs(student, self.temperature)
        return reverse_kl(prediction, target, self.temperature)
