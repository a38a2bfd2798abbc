"""Yang et al. 2023: the target's term, and the cross-entropy of the normalized others."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened
from tests.reference.response import without


def nkd(
    student: Rows, teacher: Rows, target: list[int], gamma: float, temperature: float
) -> float:
    """-p_t log q_t - gamma T^2 sum_(k != t) p^_k log q^_k, mean over the labelled rows."""
    values = []
    for z, v, label in zip(student, teacher, target, strict=True):
        if label == -100:
            continue
        own = -softened(v, 1.0)[label] * math.log(softened(z, 1.0)[label])
        p = without(softened(v, temperature), label)
        q = without(softened(z, temperature), label)
        others = -math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True))
        values.append(own + gamma * temperature**2 * others)
    return math.fsum(values) / len(values)
