"""Tools for losses on several teachers: their logits, weights from their costs, soft targets."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._labels import costs_of_labels, own_class
from kd_lightning.types import Batch, EnsembleOutput, Output, finite_log_probs, full


def members_of(output: Output) -> Tensor:
    """The logits of each teacher, `(N, M, K)`, in at least single precision.

    An arithmetic `EnsembleTeacher`, or a full cache of one, has M members; any other teacher is one.
    """
    if isinstance(output, EnsembleOutput):
        return full(output.members)
    return full(output.logits)[:, None]


def complements(costs: Tensor) -> Tensor:
    r"""Weights $(1 - c_m / \sum_l c_l) / (M - 1)$: the smaller a teacher's cost, the larger its weight.

    Args:
        costs: at least 0, `(N, M)`.

    Returns:
        `(N, M)`, rows that sum to one; equal weights if all costs are zero, and 1 for one teacher.
    """
    members = costs.shape[1]
    if members == 1:
        return torch.ones_like(costs)
    total = costs.sum(1, keepdim=True)
    safe_total = torch.where(total > 0, total, 1)
    # Without any cost the teachers are equally good.
    share = torch.where(total > 0, costs / safe_total, 1 / members)
    return (1 - share) / (members - 1)


def confidence(log_probs: Tensor, batch: Batch) -> Tensor:
    r"""Weights by the cross-entropy of each teacher with the label.

    Zhang et al. 2022, equation 2: $(1 - \mathrm{softmax}_m(\mathrm{CE}_m)) / (M - 1)$.

    Args:
        log_probs: at temperature 1, `(N, M, K)`.
        batch: its labels. A row without a label gets equal weights; a mixed one the cross-entropy
            with both labels by their shares.

    Returns:
        `(N, M)`, rows that sum to one.
    """
    costs = []
    for member in log_probs.unbind(1):
        costs.append(costs_of_labels(partial(_cost_of_labels, member), batch))
    return complements(torch.softmax(torch.stack(costs, dim=1), dim=1))


def _cost_of_labels(log_probs: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of labels under log-probabilities `(N, K)`, `(N,)` in nats."""
    return -own_class(log_probs, labels)


def soft_target_kls(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    r"""$T^2 \, \mathrm{KL}(p_m \| q)$ of each row and teacher, in nats.

    Args:
        student: logits, `(N, K)`.
        teachers: logits, `(N, M, K)`.
        temperature: T.

    Returns:
        `(N, M)`.
    """
    log_q = finite_log_probs(torch.log_softmax(student / temperature, dim=-1))
    log_p = finite_log_probs(torch.log_softmax(teachers / temperature, dim=-1))
    log_q = log_q[:, None].expand_as(log_p)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(-1)
