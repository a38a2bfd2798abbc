"""The consistency cost and its ramp-up, with plain loops: Tarvainen and Valpola 2017."""

from __future__ import annotations

import math

from tests.reference.kd import Rows
from tests.reference.response import mean_over_rows


def squared_distance(p: list[float], q: list[float]) -> float:
    """sum_k (q_k - p_k)^2 / K."""
    return math.fsum((b - a) ** 2 for a, b in zip(p, q, strict=True)) / len(p)


def consistency(student: Rows, teacher: Rows) -> float:
    """The distance at temperature 1, mean over rows."""
    return mean_over_rows(squared_distance, student, teacher, 1.0)


def ramp(epoch: int, length: int) -> float:
    """exp(-5 (1 - min(e / E, 1))^2)."""
    progress = 1.0 if length == 0 else min(epoch / length, 1.0)
    return math.exp(-5.0 * (1.0 - progress) ** 2)
