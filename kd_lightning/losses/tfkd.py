"""Teacher-free distillation with a virtual teacher: Yuan et al. 2020."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._labels import mean_over_labels
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    is_number,
    positive,
)
from kd_lightning.types import Batch, Output, finite_log_probs

Formula = Literal["paper", "code"]
"""What is divided by the temperature; see `TfKD`."""


def virtual_teacher(target: Tensor, num_classes: int, correct: float) -> Tensor:
    """Probability `correct` for the target class, the rest evenly for the others.

    Args:
        target: int64 `(N,)`, never `UNLABELLED`.
        num_classes: K, at least 2.
        correct: in (0, 1).

    Returns:
        Float64 `(N, K)`, probabilities.
    """
    other = (1 - correct) / (num_classes - 1)
    shape = (len(target), num_classes)
    # Double precision, because its logarithm is divided by a high temperature.
    u = torch.full(shape, other, dtype=torch.float64, device=target.device)
    return u.scatter(1, target[:, None], correct)


class TfKD(DistillLoss):
    r"""KL from a designed teacher that is right with probability 0.99: $\mathrm{KL}(u_T \| q)$.

    There is no network: $u$ gives the label 0.99 and every other class an equal part of the rest,
    and $u_T$ is $u$ at a high temperature, a form of label smoothing. The paper and the authors'
    code differ, and so do the results:

    - "paper": $u_T = \mathrm{softmax}(\ln u / T)$, the student's $q$ at the same temperature. There
      is no factor $T^2$, so the gradient is as small as $1/T$.
    - "code": $u_T = \mathrm{softmax}(u / T)$ of the *probabilities*, which at T = 20 is nearly
      uniform, and $q$ at temperature 1.

    The total is `(1 - a) * CE + a * TfKD` with a = 0.1. The code averages over elements and
    multiplies by 100, which on CIFAR-100 is the mean over samples used here. The mean is over
    labelled rows; mixed samples count both labels by their shares.

    The paper's other form, Tf-KD by self-training, is `KD` with a trained copy of the student as
    the teacher.

    Args:
        convention: "paper" or "code".
        temperature: T, greater than 0.
        correct: the virtual teacher's probability of the label, in (0, 1).
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for an unknown convention, or a number out of range.
    """

    paper: ClassVar[str] = "Yuan et al. 2020, arXiv 1909.11723"
    year: ClassVar[int] = 2020
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    uses_teacher: ClassVar[bool] = False
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        convention: Formula = "paper",
        temperature: float = 20.0,
        correct: float = 0.99,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if convention not in get_args(Formula):
            raise UserError(
                f"TfKD: convention must be 'paper' or 'code', got {convention!r}"
            )
        if not is_number(correct) or not 0 < correct < 1:
            raise UserError(f"TfKD: correct must be a number in (0, 1), got {correct}")
        self.convention = convention
        self.temperature = positive("TfKD", "temperature", temperature)
        self.correct = correct

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """KL of the student from the virtual teacher, mean over labelled rows; a scalar in nats."""
        tempers_student = self.convention == "paper"
        # The authors' code leaves the student at temperature 1; see the class.
        student_temperature = self.temperature if tempers_student else 1.0
        q = student.log_probs(student_temperature)
        log_q = finite_log_probs(q)

        def cost(labels: Tensor) -> Tensor:
            u = virtual_teacher(labels, log_q.shape[1], self.correct)
            scores = u.log() if self.convention == "paper" else u
            log_probs = torch.log_softmax(scores / self.temperature, dim=-1)
            log_u = log_probs.to(log_q.dtype)
            # KL of each row, `(N,)`.
            terms = log_u.exp() * (log_u - log_q)
            return terms.sum(-1)

        return mean_over_labels(cost, batch)
