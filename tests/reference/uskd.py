"""Yang et al. 2023: self-distillation from the label, the other classes and a weak head."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.reference.kd import Rows, softened
from tests.reference.response import without


@dataclass
class Terms:
    """Each term, mean over the labelled rows."""

    target: float
    others: float
    weak: float


def zipf(scores: list[float]) -> list[float]:
    """1 / rank, scaled to sum to one."""
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    total = math.fsum(1 / r for r in range(1, len(scores) + 1))
    return [1 / rank / total for rank in ranks]


def uskd(student: Rows, weak: Rows, target: list[int]) -> Terms:
    """From the logits of the student and of the weak head."""
    rows = [
        (softened(z, 1.0), softened(w, 1.0), label)
        for z, w, label in zip(student, weak, target, strict=True)
        if label != -100
    ]
    mean_square = math.fsum(q[label] ** 2 for q, _, label in rows) / len(rows)
    terms = Terms(0.0, 0.0, 0.0)
    for q, w, label in rows:
        terms.target -= (
            (q[label] ** 2 + 1 - mean_square) * math.log(q[label]) / len(rows)
        )
        rest = without(q, label)
        scores = [a + b for a, b in zip(rest, without(w, label), strict=True)]
        for z, q_k in zip(zipf(scores), rest, strict=True):
            terms.others -= z * math.log(q_k) / len(rows)
        for k, w_k in enumerate(w):
            smooth = 0.1 / len(w) + (0.9 if k == label else 0)
            terms.weak -= smooth * math.log(w_k) / len(rows)
    return terms
