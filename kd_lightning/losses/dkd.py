"""Decoupled knowledge distillation: Zhao et al. 2022."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    count_labelled,
    is_labelled,
    is_number,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs


def decoupled_kl(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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
    # All columns but the target's: those from the target on move up by one. An index, unlike a
    # boolean mask, has a known size, so the device does not wait.
    columns = torch.arange(student.shape[1] - 1, device=student.device)
    other_columns = columns + (columns >= target[:, None])
    q_binary, q_rest = _split(student, target, other_columns)
    p_binary, p_rest = _split(teacher, target, other_columns)
    target_class = F.kl_div(q_binary, p_binary, reduction="none", log_target=True).sum(1)
    others = F.kl_div(q_rest, p_rest, reduction="none", log_target=True).sum(1)
    return target_class, others


def _split(log_probs: Tensor, target: Tensor, other_columns: Tensor) -> tuple[Tensor, Tensor]:
    """Split `(N, K)` into the binary distribution `(N, 2)` and that of the others `(N, K - 1)`."""
    own = log_probs.gather(1, target[:, None])
    rest = log_probs.gather(1, other_columns)
    # The log of 1 - p_t, without the cancellation in that difference.
    log_rest = finite_log_probs(rest.logsumexp(1, keepdim=True))
    binary = torch.cat([own, log_rest], 1)
    return finite_log_probs(binary), finite_log_probs(rest - log_rest)


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
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not is_number(value) or value < 0:
                raise UserError(f"DKD: {name} must be a finite number of at least 0, got {value}")
        self.alpha = alpha
        self.beta = beta
        self.temperature = positive("DKD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of TCKD and NCKD, mean over labelled rows; a scalar in nats."""
        p = teacher_of(self, teacher).log_probs(self.temperature)
        q = student.log_probs(self.temperature)

        def cost(labels: Tensor) -> Tensor:
            # Class 0 stands in for an unknown label; the mask removes its cost and its gradient.
            target_class, others = decoupled_kl(q, p, labels.clamp(min=0))
            weighted = self.alpha * target_class + self.beta * others
            return weighted * is_labelled(labels)

        labels = batch.labels
        partner = batch.partner_labels
        share = batch.row_share
        if partner is None or share is None:
            costs = cost(labels)
        else:
            costs = torch.lerp(cost(partner), cost(labels), share.to(q.dtype))
        # A batch without labels costs zero instead of 0 / 0.
        labelled = count_labelled(labels, partner).clamp(min=1)
        return self.temperature**2 * costs.sum() / labelled
