"""The largest difference of probability that two distributions give to any set of classes."""

from __future__ import annotations

import math

from tests.reference.kd import Rows
from tests.reference.response import mean_over_rows


def distance(p: list[float], q: list[float]) -> float:
    """The set of all classes that p finds likelier: sum_k max(p_k - q_k, 0)."""
    return math.fsum(max(a - b, 0.0) for a, b in zip(p, q, strict=True))


def total_variation(student: Rows, teacher: Rows, temperature: float) -> float:
    """The distance, mean over rows."""
    return mean_over_rows(distance, student, teacher, temperature)
