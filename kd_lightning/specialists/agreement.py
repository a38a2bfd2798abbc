"""The distribution that a generalist and its specialists agree on best.

Hinton et al. 2015 (arXiv 1503.02531), section 5.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Default distance to the minimum at which the search stops, see `agreed_log_probs`."""
MAX_ITERATIONS = 10_000
"""Default limit of the number of iterations."""


def membership(class_ids: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Which of K classes each of M specialists knows, bool `(M, K)`.

    Args:
        class_ids: the classes of each specialist.
        classes: K.
    """
    known = torch.zeros(len(class_ids), classes, dtype=torch.bool)
    for row, ids in zip(known, class_ids, strict=True):
        row[list(ids)] = True
    return known


def active_specialists(generalist: Tensor, known: Tensor, n: int = 1) -> Tensor:
    """The specialists to query per sample: those that know any of its n most probable classes.

    Args:
        generalist: log-probabilities or logits, `(B, K)`.
        known: bool `(M, K)`, see `membership`.
        n: number of the generalist's classes to consider.

    Returns:
        bool `(B, M)`.
    """
    count = min(n, generalist.shape[-1])
    top_classes = generalist.topk(count, dim=-1).indices
    # Row k of `knows`: the specialists that know class k.
    knows = known.to(generalist.device).T
    return knows[top_classes].any(1)


def agreed_log_probs(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    class_ids: Sequence[Sequence[int]],
    active: Tensor,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tensor:
    r"""The distribution q that minimizes $KL(p_g \| q) + \sum_{m \in A} KL(p_m \| q)$ per sample.

    The distribution $p_m$ of a specialist covers its classes $S_m$ and a dustbin, which is compared
    with $Q_m = \sum_{j \notin S_m} q_j$. With $q = \mathrm{softmax}(z)$, the gradient is

    $$(1 + |A|) q_j - p_g(j) - \sum_{m: j \in S_m} p_m(j)
      - \sum_{m: j \notin S_m} p_m(\mathrm{dustbin}) q_j / Q_m = (1 + |A|) (q_j - t_j).$$

    Here t is the mean of all opinions, with each dustbin spread over its classes in proportion to
    q; at the minimum, q equals t. The search is gradient descent on z from $\log p_g$, in double
    precision, with step size $1 / ((1 + |A|) \max(q_j, t_j))$ per logit. The objective cannot rise,
    because each update $(t_j - q_j) / \max(q_j, t_j)$ lies between 0 and $\log (t_j / q_j)$. It is
    convex in q, so the result is the global minimum.

    Args:
        generalist: log-probabilities, `(B, K)`.
        specialists: log-probabilities of each of M specialists, `(B, m + 1)`, the dustbin last;
            rows for which a specialist is not active can hold any finite values.
        class_ids: the m classes of each specialist.
        active: the specialists that count per sample, bool `(B, M)`.
        tolerance: a sample is done if $\sum_j |q_j - t_j|$ is at most this.
        max_iterations: largest number of iterations.

    Returns:
        log q, `(B, K)`, in the dtype of `generalist`.
    """
    # The search starts from the generalist's own distribution.
    z = generalist.double()
    opinions = _Opinions.of(z, specialists, class_ids, active)
    tiny = torch.finfo(z.dtype).tiny
    result = z.clone()
    # The samples that are not done.
    rows = torch.arange(len(z), device=z.device)
    for _ in range(max_iterations):
        q = z.softmax(1)
        target = opinions.mean(q)
        difference = target - q
        largest = torch.maximum(q, target).clamp(min=tiny)
        z = z + difference / largest
        unfinished = difference.abs().sum(1) > tolerance
        if bool(unfinished.all()):
            continue
        # Samples that are done leave the batch, so that a few slow ones cost little.
        result[rows[~unfinished]] = z[~unfinished]
        rows = rows[unfinished]
        z = z[unfinished]
        opinions = opinions.select(unfinished)
        if not len(rows):
            break
    # The samples that reached the limit of iterations.
    result[rows] = z
    return result.log_softmax(1).to(generalist.dtype)


@dataclass
class _Opinions:
    """What a generalist and its active specialists say about B samples.

    Attributes:
        fixed: sum of all opinions on each class, without the dustbins, `(B, K)`.
        dustbins: each specialist's probability of its dustbin, `(B, M)`; 0 if it is not active.
        count: number of opinions per sample, `(B, 1)`.
        outside: 1 for each class in a specialist's dustbin, `(M, K)`.
    """

    fixed: Tensor
    dustbins: Tensor
    count: Tensor
    outside: Tensor

    @classmethod
    def of(
        cls,
        generalist: Tensor,
        specialists: Sequence[Tensor],
        class_ids: Sequence[Sequence[int]],
        active: Tensor,
    ) -> _Opinions:
        """Sum up the log-probabilities; see `agreed_log_probs` for the arguments."""
        weights = active.double()
        fixed = generalist.exp()
        dustbins = torch.empty_like(weights)
        pairs = zip(specialists, class_ids, strict=True)
        for column, (log_probs, ids) in enumerate(pairs):
            # A specialist that is not active has weight 0 and adds nothing.
            probs = log_probs.double().exp() * weights[:, column, None]
            columns = torch.tensor(ids, device=fixed.device)
            fixed[:, columns] += probs[:, :-1]
            dustbins[:, column] = probs[:, -1]
        known = membership(class_ids, generalist.shape[-1])
        outside = (~known).to(generalist)
        # The generalist's opinion always counts.
        count = 1 + weights.sum(1, keepdim=True)
        return cls(fixed, dustbins, count, outside)

    def mean(self, q: Tensor) -> Tensor:
        """The mean of all opinions, with each dustbin spread over its classes like q, `(B, K)`."""
        # Q_m can underflow to zero if q is sure of a specialist's own class.
        tiny = torch.finfo(q.dtype).tiny
        outside_mass = (q @ self.outside.T).clamp(min=tiny)
        # p_m(dustbin) / Q_m of each specialist, (B, M).
        spread = self.dustbins / outside_mass
        total = self.fixed + q * (spread @ self.outside)
        return total / self.count

    def select(self, rows: Tensor) -> _Opinions:
        """The opinions on some samples, given a bool mask `(B,)`."""
        return replace(
            self,
            fixed=self.fixed[rows],
            dustbins=self.dustbins[rows],
            count=self.count[rows],
        )
