"""Decoupled knowledge distillation: Zhao et al. 2022."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, is_number, positive, teacher_of
from kd_lightning.losses.ce import labelled
from kd_lightning.types import UNLABELLED, Batch, Output


def decoupled_kl(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two parts of $\mathrm{KL}(p \,\|\, q) = \mathrm{TCKD} + (1 - p_t) \, \mathrm{NCKD}$ of each sample, in nats.

    Zhao et al. 2022, section 3.1. TCKD compares the binary distributions $(p_t, 1 - p_t)$ of "the target class or another";
    NCKD the distributions over the other classes, given that it is one of them. Everything is a sum or a difference of
    logarithms: no probability is divided by another, so a teacher that is sure of itself does no harm.

    Args:
        student: log-probabilities $\ln q$, `(B, K)`, K at least 2.
        teacher: log-probabilities $\ln p$, `(B, K)`.
        target: int64 `(B,)`, the class t of each sample, none of them `UNLABELLED`.

    Returns:
        TCKD and NCKD, `(B,)` each.
    """
    columns = torch.arange(student.shape[1] - 1, device=student.device).expand(len(target), -1)
    columns = columns + (columns >= target[:, None])  # all but the target's
    parts = []
    for log_probs in (student, teacher):
        rest = log_probs.gather(1, columns)
        log_rest = rest.logsumexp(1, keepdim=True)
        parts.append(
            (torch.cat([log_probs.gather(1, target[:, None]), log_rest], 1), rest - log_rest)
        )
    (q_binary, q_rest), (p_binary, p_rest) = parts
    return (
        F.kl_div(q_binary, p_binary, reduction="none", log_target=True).sum(1),
        F.kl_div(q_rest, p_rest, reduction="none", log_target=True).sum(1),
    )


class DKD(DistillLoss):
    r"""Decoupled soft targets: $T^2 (\alpha \, \mathrm{TCKD} + \beta \, \mathrm{NCKD})$, section 3.3 of the paper.

    KD is the case $\alpha = 1$, $\beta = 1 - p_t$, in which a teacher that is sure of the target class says next to nothing
    about the others. The paper's values on CIFAR-100, with T = 4 and $\alpha = 1$: $\beta = 8$; 2 for resnet56-resnet20 and
    resnet110-resnet32; 6 for wide ResNets and vgg13-vgg8. It raises the weight linearly in the first 20 epochs (`warmup`).

    The loss is the mean over the labelled samples, and zero where none is. Where samples are mixed with others (`Mixup`) it
    is, as the hard loss is, the mean of the loss for either label by its share.

    Args:
        alpha: weight of TCKD, at least 0.
        beta: weight of NCKD, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for a temperature, alpha or beta out of range.
    """

    paper: ClassVar[str] = "Zhao et al. 2022, arXiv 2203.08679"
    year: ClassVar[int] = 2022
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, **base: Any
    ) -> None:
        super().__init__(**base)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not is_number(value) or value < 0:
                raise UserError(f"DKD: {name} must be a finite number of at least 0, got {value}")
        self.alpha, self.beta = alpha, beta
        self.temperature = positive("DKD", "temperature", temperature)

    def counted(self, batch: Batch) -> Tensor:
        return labelled(batch.target, batch.partner) * (not batch.ghost)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        p = teacher_of(self, teacher).log_probs(self.temperature)
        q = student.log_probs(self.temperature)

        def each(target: Tensor) -> Tensor:
            target_class, others = decoupled_kl(q, p, target.clamp(min=0))
            return (self.alpha * target_class + self.beta * others) * (target != UNLABELLED)

        if batch.partner is None or batch.share is None:
            total = each(batch.target)
        else:
            total = torch.lerp(each(batch.partner), each(batch.target), batch.share.to(q.dtype))
        return (
            self.temperature**2 * total.sum() / labelled(batch.target, batch.partner).clamp(min=1)
        )
