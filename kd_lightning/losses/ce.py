"""The hard loss: cross-entropy with the labels, one more entry among the losses."""

from __future__ import annotations

from typing import Any, ClassVar

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
    total = F.cross_entropy(full(logits), target, ignore_index=UNLABELLED, label_smoothing=label_smoothing, reduction="sum")
    return total / (target != UNLABELLED).sum().clamp(min=1)


class CrossEntropy(DistillLoss):
    """Cross-entropy with the labels.

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
            raise UserError(f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def counted(self, batch: Batch) -> Tensor:
        return (batch.target != UNLABELLED).sum() * (not batch.ghost)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return hard_cross_entropy(student.logits, batch.target, self.label_smoothing)
