"""Zheng and Yang 2024: the teacher's distribution to a power, against the student's own."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened
from tests.reference.response import kl


def ttm(student: Rows, teacher: Rows, gamma: float, weighted: bool) -> float:
    """KL(p^gamma / U | q), times U if it is weighted; mean over rows."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        powers = [p**gamma for p in softened(v, 1.0)]
        total = math.fsum(powers)
        value = kl([power / total for power in powers], softened(z, 1.0))
        values.append(total * value if weighted else value)
    return math.fsum(values) / len(values)
