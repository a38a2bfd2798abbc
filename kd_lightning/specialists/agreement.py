"""The distribution that a generalist and its specialists agree on best (Hinton et al. 2015, section 5.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-6
MAX_ITERATIONS = 10_000


def membership(class_ids: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Which classes each specialist knows, bool `(M, K)`."""
    known = torch.zeros(len(class_ids), classes, dtype=torch.bool)
    for row, ids in zip(known, class_ids, strict=True):
        row[list(ids)] = True
    return known


def active_specialists(generalist: Tensor, known: Tensor, n: int = 1) -> Tensor:
    """Which specialists are asked about each sample: those that know any of its n most probable classes.

    Args:
        generalist: `(B, K)` log-probabilities (or logits).
        known: bool `(M, K)`, see membership.
        n: how many classes of the generalist's count.

    Returns:
        bool `(B, M)`.
    """
    likely = generalist.topk(min(n, generalist.shape[-1]), dim=-1).indices
    return known.to(generalist.device).T[likely].any(1)


def agreed_log_probs(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    class_ids: Sequence[Sequence[int]],
    active: Tensor,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Tensor:
    r"""The full distribution q that minimizes $KL(p_g \| q) + \sum_{m \in A} KL(p_m \| q)$ for each sample.

    A specialist's $p_m$ is over its classes S and a dustbin, beside which stands the sum of q over all classes outside S. With
    $q = \mathrm{softmax}(z)$ and $Q_m = \sum_{j \notin S_m} q_j$ the gradient by $z_j$ is

    $$(1 + |A|) q_j - p_g(j) - \sum_{m: j \in S_m} p_m(j) - \sum_{m: j \notin S_m} p_m(\mathrm{dustbin}) q_j / Q_m
      = (1 + |A|) (q_j - t_j),$$

    that is, q is to be the mean t of all opinions, each dustbin spread in the proportions of q. This is gradient descent on z
    from $\log p_g$ with a step for each logit of $1 / ((1 + |A|) \max(q_j, t_j))$: an update $(t_j - q_j) / \max(q_j, t_j)$
    lies between 0 and $\log (t_j / q_j)$, within which the objective cannot rise. A sample is done when the sum over j of
    $|q_j - t_j|$, the gradient's L1 norm divided by the number of opinions, is at most `tolerance`. The objective is convex in
    q, so what is found is the minimum. In double precision, whatever the networks computed in.

    Args:
        generalist: log-probabilities `(B, K)`.
        specialists: for each of M specialists log-probabilities `(B, m + 1)`, the dustbin last; rows in which it is not active
            may hold anything finite.
        class_ids: for each specialist its m classes.
        active: bool `(B, M)`, the specialists that count.
        tolerance: of the stopping rule.
        max_iterations: an upper bound.

    Returns:
        log q, `(B, K)`, in the type of `generalist`.
    """
    z = generalist.double()
    counts = active.double()
    outside = (~membership(class_ids, z.shape[-1])).to(z)
    fixed, dustbins = z.exp(), torch.empty_like(counts)
    for at, (said, ids) in enumerate(zip(specialists, class_ids, strict=True)):
        probs = said.double().exp() * counts[:, at, None]
        fixed[:, torch.tensor(ids, device=z.device)] += probs[:, :-1]
        dustbins[:, at] = probs[:, -1]
    opinions = 1 + counts.sum(1, keepdim=True)
    found, rows, tiny = z.clone(), torch.arange(len(z), device=z.device), torch.finfo(z.dtype).tiny
    for _ in range(max_iterations):
        q = z.softmax(1)
        spread = dustbins / (q @ outside.T).clamp(min=tiny)
        target = (fixed + q * (spread @ outside)) / opinions
        z = z + (target - q) / torch.maximum(q, target).clamp(min=tiny)
        going = (target - q).abs().sum(1) > tolerance
        if bool(going.all()):
            continue
        found[rows[~going]] = z[~going]
        rows, z, fixed, dustbins, opinions = (
            x[going] for x in (rows, z, fixed, dustbins, opinions)
        )
        if not len(rows):
            break
    found[rows] = z
    return found.log_softmax(1).to(generalist.dtype)
