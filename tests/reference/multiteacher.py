"""Several teachers, row by row: weights by entropy or by the label (Kwon et al. 2020, Zhang et al. 2022)."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def entropies(members: Rows, temperature: float = 1.0) -> list[float]:
    """The entropy of each teacher's distribution of one row."""
    found = []
    for logits in members:
        p = softened(logits, temperature)
        found.append(-math.fsum(x * math.log(x) for x in p if x > 0))
    return found


def by_entropy(members: Rows, temperature: float = 1.0) -> list[float]:
    """One minus the share of the entropy, over the number of the other teachers."""
    if len(members) == 1:
        return [1.0]
    costs = entropies(members, temperature)
    return [(1 - cost / math.fsum(costs)) / (len(costs) - 1) for cost in costs]


def by_label(members: Rows, label: int) -> list[float]:
    """One minus the softmax over teachers of the cross-entropy, over the number of the others."""
    if len(members) == 1:
        return [1.0]
    costs = [-math.log(softened(logits, 1.0)[label]) for logits in members]
    return [(1 - share) / (len(costs) - 1) for share in softened(costs, 1.0)]


def weighted(
    student: Rows, teachers: list[Rows], weights: Rows, temperature: float
) -> float:
    """T^2 sum_m w_m KL(p_m | q), mean over rows; teachers and weights by row, then by teacher."""
    total = 0.0
    for z, members, shares in zip(student, teachers, weights, strict=True):
        q = softened(z, temperature)
        for logits, share in zip(members, shares, strict=True):
            p = softened(logits, temperature)
            divergence = math.fsum(
                a * math.log(a / b) for a, b in zip(p, q, strict=True)
            )
            total += share * temperature**2 * divergence
    return total / len(student)
