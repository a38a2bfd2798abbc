"""Decoupled knowledge distillation: Zhao et al. 2022."""

from __future__ import annotations

from typing import ClassVar, Unpack

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
from kd_lightning.types import Batch, Output


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""The two parts of $\mathrm{KL}(p \,\|\, q) = \mathrm{TCKD} + (1 - p_t) \, \mathrm{NCKD}$.

    Zhao et al. 2022, section 3.1, for each row, in nats. TCKD compares the binary distributions
    $(p_t, 1 - p_t)$ of "the target class or another"; NCKD compares the distributions over the
    other classes, given that it is one of them. Every step is a sum or a difference of logarithms:
    no probability is divided by another, so a fully confident teacher causes no overflow.

    Args:
        student: log-probabilities $\ln q$, `(N, K)`, K at least 2.
        teacher: log-probabilities $\ln p$, `(N, K)`.
        target: int64 `(N,)`, the class t of each row, never `UNLABELLED`.

    Returns:
        TCKD and NCKD, each `(N,)`.
    """
    # Binary distributions `(N, 2)`, and those over the other classes `(N, K - 1)`.
    q_binary, q_rest = split_target(student, target)
    p_binary, p_rest = split_target(teacher, target)
    # TCKD: how likely is the target class at all?
    binary_terms = F.kl_div(q_binary, p_binary, reduction="none", log_target=True)
    target_class = binary_terms.sum(1)
    # NCKD: which class is it, if not the target?
    rest_terms = F.kl_div(q_rest, p_rest, reduction="none", log_target=True)
    others = rest_terms.sum(1)
    return target_class, others


class DKD(DistillLoss):
    r"""Decoupled soft targets: $T^2 (\alpha \, \mathrm{TCKD} + \beta \, \mathrm{NCKD})$.

    Section 3.3 of the paper. KD is the case $\alpha = 1$, $\beta = 1 - p_t$, in which a teacher
    that is sure of the target class teaches next to nothing about the others. The paper's values on
    CIFAR-100, with T = 4 and $\alpha = 1$: $\beta = 8$; 2 for resnet56-resnet20 and
    resnet110-resnet32; 6 for wide ResNets and vgg13-vgg8. It raises the weight linearly during the
    first 20 epochs (`warmup`).

    The loss is the mean over the labelled rows, and zero if there are none. For mixed samples
    (`Mixup`) it is, like the hard loss, the mean of the losses for both labels by their shares.

    Args:
        alpha: weight of TCKD, at least 0.
        beta: weight of NCKD, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature, alpha or beta out of range.
    """

    paper: ClassVar[str] = "Zhao et al. 2022, arXiv 2203.08679"
    year: ClassVar[int] = 2022
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.alpha = not_negative("DKD", "alpha", alpha)
        self.beta = not_negative("DKD", "beta", beta)
        self.temperature = positive("DKD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of TCKD and NCKD, mean over labelled rows; a scalar in nats."""
        p = teacher_of(self, teacher).log_probs(self.temperature)
        q = student.log_probs(self.temperature)

        # The factor 1 - p_t of the KL, which couples NCKD to the teacher's confidence, is
        # replaced by the free weight beta.
        def cost(labels: Tensor) -> Tensor:
            target_class, others = decoupled_kl(q, p, labels)
            return self.alpha * target_class + self.beta * others

        return mean_over_labels(cost, batch, self.temperature**2)
