"""Half of Jeffreys' sum of both KL divergences."""

from __future__ import annotations

import math

from tests.reference.kd import Rows
from tests.reference.response import mean_over_rows


def half(p: list[float], q: list[float]) -> float:
    """1/2 sum_k (p_k - q_k) (log p_k - log q_k)."""
    terms = [(a - b) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)]
    return math.fsum(terms) / 2


def jeffreys(student: Rows, teacher: Rows, temperature: float) -> float:
    """T^2 times the half sum, mean over rows."""
    return temperature**2 * mean_over_rows(half, student, teacher, temperature)
