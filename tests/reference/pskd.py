"""Kim et al. 2021: the cross-entropy with a mixture of the label and an earlier prediction."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def pskd(student: Rows, previous: Rows, target: list[int], alpha: float) -> float:
    """-sum_k [(1 - alpha) y_k + alpha p_k] ln q_k, mean over the labelled rows; p is given."""
    costs = []
    for z, p, label in zip(student, previous, target, strict=True):
        if label == -100:
            continue
        q = softened(z, 1.0)
        terms = []
        for k, q_k in enumerate(q):
            y = 1.0 if k == label else 0.0
            terms.append(-((1 - alpha) * y + alpha * p[k]) * math.log(q_k))
        costs.append(math.fsum(terms))
    return math.fsum(costs) / len(costs)
