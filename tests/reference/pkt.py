"""Passalis and Tefas 2018, section 3: who is whose neighbor, to the student and to the teacher."""

from __future__ import annotations

import math

from tests.reference.sp import Rows


def cosine(one: list[float], two: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, two, strict=True))
    norms = math.hypot(*one) * math.hypot(*two)
    return product / norms if norms > 0 else 0.0


def conditional(features: Rows, others_only: bool) -> Rows:
    """p_j|i: the similarity of i and j over that of i and all, or all others."""
    result = []
    for i, f in enumerate(features):
        row = []
        for j, other in enumerate(features):
            left_out = others_only and i == j
            row.append(0.0 if left_out else (cosine(f, other) + 1) / 2)
        total = math.fsum(row)
        result.append([value / total if total > 0 else 0.0 for value in row])
    return result


def pkt(student: Rows, teacher: Rows, benchmark: bool, added: float = 0.0) -> float:
    """The sum of p log(p / q) over pairs of different samples, or its mean over all entries; `added` to p and q in the log."""
    ours, theirs = (
        conditional(student, not benchmark),
        conditional(teacher, not benchmark),
    )
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            p, q = theirs[i][j], ours[i][j]
            if p > 0:
                total += p * math.log((p + added) / (q + added))
    return total / len(student) ** 2 if benchmark else total
