"""Divergences between softened distributions of two classifiers, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.reference.kd import Rows, softened

Divergence = Callable[[list[float], list[float]], float]


def kl(p: list[float], q: list[float]) -> float:
    """sum_k p_k log(p_k / q_k)."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_over_rows(
    divergence: Divergence, student: Rows, teacher: Rows, temperature: float
) -> float:
    """The mean over rows of divergence(p, q), p the teacher's and q the student's distribution."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        values.append(divergence(softened(v, temperature), softened(z, temperature)))
    return math.fsum(values) / len(values)


def without(row: list[float], k: int) -> list[float]:
    """The row without its entry k, scaled to sum to one."""
    rest = row[:k] + row[k + 1 :]
    return [x / math.fsum(rest) for x in rest]
