"""Wang et al. 2025: the alpha-beta divergence."""

from __future__ import annotations

import math

from tests.reference.kd import Rows
from tests.reference.response import mean_over_rows


def abkd(student: Rows, teacher: Rows, a: float, b: float, temperature: float) -> float:
    """T^2 * -1/(ab) sum (p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)), mean over rows."""

    def divergence(p: list[float], q: list[float]) -> float:
        terms = []
        for x, y in zip(p, q, strict=True):
            powers = a / (a + b) * x ** (a + b) + b / (a + b) * y ** (a + b)
            terms.append(x**a * y**b - powers)
        return -math.fsum(terms) / (a * b)

    return temperature**2 * mean_over_rows(divergence, student, teacher, temperature)
