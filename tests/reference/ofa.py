"""Hao et al. 2023: the enhanced target, class by class."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def cost(
    z: list[float], v: list[float], label: int, exponent: float, t: float
) -> float:
    """-sum_k [(p_k + m_k)^e - m_k] log q_k of one row; an unknown label is negative."""
    q, p = softened(z, t), softened(v, t)
    terms = []
    for k in range(len(q)):
        m = 1.0 if k == label else 0.0
        terms.append(((p[k] + m) ** exponent - m) * math.log(q[k]))
    return -math.fsum(terms)


def mean_cost(
    student: Rows, teacher: Rows, labels: list[int], exponent: float, t: float
) -> float:
    """The mean over rows."""
    rows = zip(student, teacher, labels, strict=True)
    return math.fsum(cost(z, v, y, exponent, t) for z, v, y in rows) / len(student)
