"""Refined logit distillation: Sun et al. 2025."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._labels import mean_over_labels, split_target
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full


def confidence_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    r"""KL between $(p_{max}, 1 - p_{max})$ of the teacher and $(q_t, 1 - q_t)$ of the label.

    Sun et al. 2025, sample confidence distillation: how sure the teacher is of its own decision,
    right or wrong, becomes how sure the student is of the label.

    Args:
        student: log-probabilities, `(N, K)`.
        teacher: log-probabilities, `(N, K)`.
        target: int64 `(N,)`, never `UNLABELLED`.

    Returns:
        `(N,)`, in nats.
    """
    # The teacher's own decision, which need not be the label.
    decision = teacher.argmax(-1)
    p_binary, _ = split_target(teacher, decision)
    q_binary, _ = split_target(student, target)
    terms = F.kl_div(q_binary, p_binary, reduction="none", log_target=True)
    return terms.sum(-1)


def masked_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    r"""KL over the classes that the teacher finds less likely than the label.

    Sun et al. 2025, masked correlation distillation. The label, and all classes that the teacher
    wrongly ranks at least as high, are left out; both sides are normalized over the rest.

    Args:
        student: logits of the tempered distribution, `(N, K)`.
        teacher: logits of the tempered distribution, `(N, K)`.
        target: int64 `(N,)`, never `UNLABELLED`.

    Returns:
        `(N,)`, in nats; zero if fewer than two classes remain.
    """
    left_out = teacher >= teacher.gather(1, target[:, None])
    # Not -inf: a row without a class left would become NaN. Now both sides of it are uniform.
    lowest = torch.finfo(student.dtype).min
    # Both sides are normalized over the classes that remain, `(N, K)`.
    student_rest = student.masked_fill(left_out, lowest)
    log_q = finite_log_probs(torch.log_softmax(student_rest, dim=-1))
    teacher_rest = teacher.masked_fill(left_out, lowest)
    log_p = finite_log_probs(torch.log_softmax(teacher_rest, dim=-1))
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return terms.masked_fill(left_out, 0).sum(-1)


class RLD(DistillLoss):
    r"""Soft targets without the teacher's mistakes: $\alpha\,\mathrm{SCD} + \beta\,\mathrm{MCD}$.

    SCD hands on the teacher's confidence: $T_a^2$ times the KL between the binary distributions
    "the teacher's decision or another class" and, for the student, "the label or another class".
    MCD hands on what the teacher says of the classes below the label: $T^2$ times the KL over
    these. Where the teacher is right, MCD is NCKD of `DKD`, and SCD is TCKD at another temperature;
    there student = teacher is the minimum, with the value 0. Elsewhere it is not.

    Defaults are those of the authors' code; the hard loss has weight 1, and `warmup` is 20 epochs.
    The mean is over labelled rows; mixed samples count both labels by their shares.

    Args:
        alpha: weight of SCD, at least 0.
        beta: weight of MCD, at least 0.
        temperature: T of MCD, greater than 0.
        confidence_temperature: $T_a$ of SCD, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature, alpha or beta out of range.
    """

    paper: ClassVar[str] = "Sun et al. 2025, arXiv 2408.07703"
    year: ClassVar[int] = 2025
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")
    exact_logits: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.alpha = not_negative("RLD", "alpha", alpha)
        self.beta = not_negative("RLD", "beta", beta)
        self.temperature = positive("RLD", "temperature", temperature)
        self.confidence_temperature = positive(
            "RLD", "confidence_temperature", confidence_temperature
        )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of SCD and MCD, mean over labelled rows; a scalar in nats."""
        target = teacher_of(self, teacher)
        # Converted once: two gradients of half-precision logits would be rounded before their sum.
        student = Output(full(student.logits))
        p = target.log_probs(self.confidence_temperature)
        q = student.log_probs(self.confidence_temperature)
        tempered_teacher = target.tempered_logits(self.temperature)
        tempered_student = student.tempered_logits(self.temperature)

        def cost(labels: Tensor) -> Tensor:
            confidence = self.confidence_temperature**2 * confidence_kl(q, p, labels)
            masked = self.temperature**2 * masked_kl(
                tempered_student, tempered_teacher, labels
            )
            return self.alpha * confidence + self.beta * masked

        return mean_over_labels(cost, batch)
