"""Tools for losses that read labels: the mean over labelled rows, and the other classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kd_lightning.losses.base import count_labelled, is_labelled
from kd_lightning.types import Batch, finite_log_probs


def costs_of_labels(cost: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """The cost of each row, which depends on its label.

    For mixed samples (`Mixup`) it is, like the hard loss, the sum of the costs for both labels by
    their shares; an unknown label costs nothing.

    Args:
        cost: maps labels, int64 `(N,)` and never `UNLABELLED`, to the costs of the rows, `(N,)`.
        batch: its labels, its partners' labels and their shares.

    Returns:
        `(N,)`.
    """

    def known_cost(labels: Tensor) -> Tensor:
        # Class 0 stands in for an unknown label; the mask removes its cost and its gradient.
        costs = cost(labels.clamp(min=0))
        return torch.where(is_labelled(labels), costs, 0)

    partner = batch.partner_labels
    share = batch.row_share
    costs = known_cost(batch.labels)
    if partner is None or share is None:
        return costs
    return torch.lerp(known_cost(partner), costs, share.to(costs.dtype))


def mean_over_labels(
    cost: Callable[[Tensor], Tensor],
    batch: Batch,
    factor: float = 1.0,
) -> Tensor:
    """Mean of `costs_of_labels` over the rows with a label, of their own or of their partner.

    Args:
        cost: maps labels `(N,)` to costs `(N,)`; see `costs_of_labels`.
        batch: see `costs_of_labels`.
        factor: multiplies the mean, such as T^2.

    Returns:
        A scalar; zero, with a graph, if no row is labelled.
    """
    costs = costs_of_labels(cost, batch)
    # A batch without labels costs zero instead of 0 / 0.
    labelled = count_labelled(batch.labels, batch.partner_labels).clamp(min=1)
    return factor * costs.sum() / labelled


def own_class(log_probs: Tensor, target: Tensor) -> Tensor:
    """The log-probability of each row's target class, `(N, K)` to `(N,)`; see `split_target`."""
    # `gather` needs one column of indices, and returns one column of values.
    columns = target[:, None]
    own = log_probs.gather(1, columns).squeeze(1)
    return finite_log_probs(own)


def split_target(log_probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Split each row's distribution into "the target class or another" and "which other class".

    Every step is a sum or a difference of logarithms, so that a row that is sure of its target
    causes no overflow.

    Args:
        log_probs: `(N, K)`, K at least 2.
        target: int64 `(N,)`, never `UNLABELLED`.

    Returns:
        Finite log-probabilities of the binary distribution, `(N, 2)`, and of the other classes in
        their order, given that it is one of them, `(N, K - 1)`.
    """
    # All columns but the target's: those from the target on move up by one. An index, unlike a
    # boolean mask, has a known size, so the device does not wait.
    target_column = target[:, None]
    columns = torch.arange(log_probs.shape[1] - 1, device=log_probs.device)
    other_columns = columns + (columns >= target_column)
    # `(N, 1)` and `(N, K - 1)`.
    own = log_probs.gather(1, target_column)
    rest = log_probs.gather(1, other_columns)
    # The log of 1 - p_t, without the cancellation in that difference.
    log_rest = finite_log_probs(rest.logsumexp(1, keepdim=True))
    binary = torch.cat([own, log_rest], 1)
    # Division by 1 - p_t normalizes the other classes.
    conditional = rest - log_rest
    return finite_log_probs(binary), finite_log_probs(conditional)


def weighted_target_cost(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    r"""$-p_t \ln q_t$: the hard loss, weighted by the teacher's probability of the label.

    Args:
        student: log-probabilities $\ln q$ at temperature 1, `(N, K)`.
        teacher: log-probabilities $\ln p$ at temperature 1, `(N, K)`.
        target: int64 `(N,)`, the class t of each row, never `UNLABELLED`.

    Returns:
        `(N,)`, in nats.
    """
    teacher_prob = own_class(teacher, target).exp()
    student_log_prob = own_class(student, target)
    return -teacher_prob * student_log_prob
