"""Cross-entropy with the labels, the hard loss of classification."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, count_labelled
from kd_lightning.types import UNLABELLED, Batch, Output, full


def hard_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""Mean over the labelled rows of $-\sum_k y_k \log \mathrm{softmax}(z)_k$, in nats.

    Args:
        logits: $z$, `(N, K)`.
        target: int64 `(N,)`; rows of -100 are ignored.
        label_smoothing: s; $y$ is $(1 - s)$ one-hot plus $s / K$ (Szegedy et al. 2016,
            arXiv 1512.00567).

    Returns:
        A scalar; zero, with a graph, if no row is labelled.
    """
    # Not reduction="mean": it would be 0 / 0 if no row is labelled.
    total = F.cross_entropy(
        full(logits),
        target,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / count_labelled(target).clamp(min=1)


def mixed_cross_entropy(
    logits: Tensor, target: Tensor, partner: Tensor, share: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    r"""Mean of $\lambda \, CE(z, y) + (1 - \lambda) \, CE(z, y')$, in nats.

    Zhang et al. 2018, arXiv 1710.09412. An unlabelled part contributes zero; the shares are not
    renormalized. The mean is over the rows with at least one labelled part.

    Args:
        logits: $z$, `(N, K)`, of the mixed samples.
        target: int64 `(N,)`, $y$, -100 if unknown.
        partner: int64 `(N,)`, $y'$, -100 if unknown.
        share: `(N,)`, $\lambda$, in [0, 1].
        label_smoothing: applied to both labels; see `hard_cross_entropy`.

    Returns:
        A scalar; zero, with a graph, if no part is labelled.
    """

    def cost(labels: Tensor) -> Tensor:
        return F.cross_entropy(
            full(logits),
            labels,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="none",
        )

    own = cost(target)
    costs = torch.lerp(cost(partner), own, share.to(own.dtype))
    # `cost` is zero where a label is unknown, so the sum needs no mask.
    labelled = count_labelled(target, partner)
    return costs.sum() / labelled.clamp(min=1)


class CrossEntropy(DistillLoss):
    """Cross-entropy with the labels; mixed samples (`Mixup`) count both labels by their shares.

    Args:
        label_smoothing: in [0, 1).
        base: weight, start, end, warmup; see `DistillLoss`.
    """

    paper: ClassVar[str] = "the hard loss"
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "hard"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    uses_teacher: ClassVar[bool] = False
    mean_over: MeanOver = "labelled"

    def __init__(self, label_smoothing: float = 0.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Cross-entropy with the labels, or with both labels of mixed samples; a scalar in nats."""
        partner = batch.partner_labels
        share = batch.row_share
        if partner is None or share is None:
            return hard_cross_entropy(student.logits, batch.labels, self.label_smoothing)
        return mixed_cross_entropy(
            student.logits, batch.labels, partner, share, self.label_smoothing
        )
