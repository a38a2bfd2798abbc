"""Cross-entropy with the labels, the hard loss of classification."""

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
    Probe,
    count_labelled,
    is_number,
)
from kd_lightning.types import UNLABELLED, Batch, Output, full

_SUM = 2
"""The reduction "sum" as a number, as operations below `torch.nn.functional` take it."""


def hard_cross_entropy(
    logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    r"""Mean over the labelled rows of $-\sum_k w_k y_k \log \mathrm{softmax}(z)_k$, in nats.

    The mean divides by the number of labelled rows and not, as torch's own does, by the sum of
    their weights: a row then counts the same in every batch and on any number of devices.

    Args:
        logits: $z$, `(N, K)`.
        target: int64 `(N,)`; rows of -100 are ignored.
        label_smoothing: s; $y$ is $(1 - s)$ one-hot plus $s / K$ (Szegedy et al. 2016,
            arXiv 1512.00567).
        class_weights: $w$, `(K,)`; ones if left out.

    Returns:
        A scalar; zero, with a graph, if no row is labelled.
    """
    logits = full(logits)
    if class_weights is None and label_smoothing == 0:
        return _plain_cross_entropy(logits, target)
    # Not reduction="mean": it would be 0 / 0 if no row is labelled.
    total = F.cross_entropy(
        logits,
        target,
        weight=_like(class_weights, logits),
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / count_labelled(target).clamp(min=1)


def _plain_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the labelled rows of the negative log-probability of the label, in nats."""
    log_probs = torch.log_softmax(logits, dim=-1)
    # The operation below `F.nll_loss`. It also returns how many rows it did not ignore, which
    # takes longer to count than the loss itself if the network is small.
    total, count = torch.ops.aten.nll_loss_forward(
        log_probs, target, None, _SUM, UNLABELLED
    )
    mean: Tensor = total / count.clamp(min=1)
    return mean


def mixed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    partner: Tensor,
    share: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
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
        class_weights: `(K,)`, applied to both labels; see `hard_cross_entropy`.

    Returns:
        A scalar; zero, with a graph, if no part is labelled.
    """
    logits = full(logits)

    def cost(labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits,
            labels,
            weight=_like(class_weights, logits),
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="none",
        )

    own = cost(target)
    costs = torch.lerp(cost(partner), own, share.to(own.dtype))
    # `cost` is zero where a label is unknown, so the sum needs no mask.
    labelled = count_labelled(target, partner)
    return costs.sum() / labelled.clamp(min=1)


def _like(class_weights: Tensor | None, logits: Tensor) -> Tensor | None:
    """The weights in the precision of the logits, as torch requires."""
    return None if class_weights is None else class_weights.to(logits.dtype)


class CrossEntropy(DistillLoss):
    """Cross-entropy with the labels; mixed samples (`Mixup`) count both labels by their shares.

    Args:
        label_smoothing: in [0, 1).
        class_weights: one number of at least 0 per class, in the order of the classes. Each row's
            loss is multiplied by the weight of its class, and divided by the number of labelled
            rows; see `hard_cross_entropy`. Weights of mean 1 over the samples keep the scale.
        head: the role of a layer whose output is taken for the logits, such as an auxiliary head.
        base: weight, start, end, warmup; see `DistillLoss`.
    """

    paper: ClassVar[str] = "the hard loss"
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "hard"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    uses_teacher: ClassVar[bool] = False
    row_wise: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        head: str | None = None,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}"
            )
        self.label_smoothing = label_smoothing
        self.head = head
        self.roles = () if head is None else (head,)
        self.class_weights: Tensor | None
        # A setting and not state: a checkpoint does not hold it.
        self.register_buffer(
            "class_weights", _weights_tensor(class_weights), persistent=False
        )

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Check that there is one weight per class."""
        weights = self.class_weights
        num_classes = student.output.logits.shape[-1]
        if weights is not None and len(weights) != num_classes:
            raise UserError(
                f"CrossEntropy: class_weights has {len(weights)} numbers, the data "
                f"{student.spec.data} has {num_classes} classes"
            )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Cross-entropy with the labels, or with both labels of mixed samples; a scalar in nats."""
        logits = head_logits("CrossEntropy", student, self.head)
        partner = batch.partner_labels
        share = batch.row_share
        if partner is None or share is None:
            return hard_cross_entropy(
                logits, batch.labels, self.label_smoothing, self.class_weights
            )
        return mixed_cross_entropy(
            logits,
            batch.labels,
            partner,
            share,
            self.label_smoothing,
            self.class_weights,
        )


def head_logits(owner: str, student: Output, head: str | None) -> Tensor:
    """The logits of a head, `(N, K)`: the student's own for `None`.

    Args:
        owner: name of the loss.
        student: its features hold the head's output by role.
        head: the role of a layer that returns logits, such as an auxiliary head.

    Raises:
        UserError: if the layer does not return logits of the student's shape.
    """
    if head is None:
        return student.logits
    logits = student.features.get(head)
    if logits is None or logits.shape != student.logits.shape:
        shape = "nothing" if logits is None else f"shape {list(logits.shape)}"
        raise UserError(
            f"{owner}: the head {head!r} returned {shape}; it must return logits of "
            f"shape {list(student.logits.shape)}"
        )
    return logits


def _weights_tensor(class_weights: list[float] | None) -> Tensor | None:
    """The weights `(K,)`, checked.

    Raises:
        UserError: if one is not a number of at least 0, or if all are 0.
    """
    if class_weights is None:
        return None
    valid = all(is_number(weight) and weight >= 0 for weight in class_weights)
    if not valid or not any(class_weights):
        raise UserError(
            "CrossEntropy: class_weights must be finite numbers of at least 0, not all 0, got "
            f"{class_weights}"
        )
    return torch.tensor(class_weights, dtype=torch.float32)
