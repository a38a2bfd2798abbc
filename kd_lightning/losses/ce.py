"""The hard loss: cross-entropy with the labels, one more entry among the losses."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.types import UNLABELLED, Batch, Output, full


def hard_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Mean over the labelled samples of $-\sum_k y_k \log \mathrm{softmax}(z)_k$, in nats.

    Args:
        logits: `(B, K)`.
        target: int64 `(B,)`; rows of -100 are left out.
        label_smoothing: $y$ is $(1 - s)$ one-hot plus $s / K$ (Szegedy et al. 2016, arXiv 1512.00567).

    Returns:
        A scalar; zero, with a graph, when no row is labelled.
    """
    if label_smoothing:
        total = F.cross_entropy(
            full(logits),
            target,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / labelled(target, None).clamp(min=1)
    # What F.cross_entropy comes down to; the kernel tells how many rows it did not leave out.
    log_probs = torch.log_softmax(full(logits), dim=-1)
    total, count = torch.ops.aten.nll_loss_forward(
        log_probs, target, None, 2, UNLABELLED
    )  # 2: the sum
    return cast(Tensor, total / count.clamp(min=1))


def mixed_cross_entropy(
    logits: Tensor, target: Tensor, partner: Tensor, share: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    r"""Mean of $\lambda \, CE(z, y) + (1 - \lambda) \, CE(z, y')$ (Zhang et al. 2018, arXiv 1710.09412), in nats.

    A part without a label costs nothing, and its share is not made up for; the mean is over the samples of which at least
    one part is labelled.

    Args:
        logits: `(B, K)`, of the mixed samples.
        target: int64 `(B,)`, $y$, -100 where unknown.
        partner: int64 `(B,)`, $y'$, -100 where unknown.
        share: `(B,)`, $\lambda$, in [0, 1].
        label_smoothing: of both labels; see hard_cross_entropy.

    Returns:
        A scalar; zero, with a graph, when no part is labelled.
    """

    def each(labels: Tensor) -> Tensor:
        return F.cross_entropy(
            full(logits),
            labels,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="none",
        )

    return torch.lerp(each(partner), each(target), share.to(full(logits).dtype)).sum() / labelled(
        target, partner
    ).clamp(min=1)


def labelled(target: Tensor, partner: Tensor | None) -> Tensor:
    """How many samples have a label, of their own or, where they are mixed, of their partner."""
    known = target != UNLABELLED
    return (known if partner is None else known | (partner != UNLABELLED)).sum()


class CrossEntropy(DistillLoss):
    """Cross-entropy with the labels; where samples are mixed (`Mixup`), with both labels by their shares.

    Args:
        label_smoothing: in [0, 1).
        base: weight, start, end, warmup; see DistillLoss.
    """

    paper: ClassVar[str] = "the hard loss"
    family: ClassVar[str] = "hard"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    uses_teacher: ClassVar[bool] = False

    def __init__(self, label_smoothing: float = 0.0, **base: Any) -> None:
        super().__init__(**base)
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def counted(self, batch: Batch) -> Tensor:
        return labelled(batch.target, batch.partner) * (not batch.ghost)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        if batch.partner is None or batch.share is None:
            return hard_cross_entropy(student.logits, batch.target, self.label_smoothing)
        return mixed_cross_entropy(
            student.logits, batch.target, batch.partner, batch.share, self.label_smoothing
        )
