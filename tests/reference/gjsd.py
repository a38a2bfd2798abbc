"""Agarwal et al. 2024, equation 1, with the teacher's share beta."""

from __future__ import annotations

from tests.reference.kd import Rows
from tests.reference.response import kl, mean_over_rows


def gjsd(student: Rows, teacher: Rows, beta: float, temperature: float) -> float:
    """beta KL(p | m) + (1 - beta) KL(q | m), m = beta p + (1 - beta) q; mean over rows."""

    def divergence(p: list[float], q: list[float]) -> float:
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return mean_over_rows(divergence, student, teacher, temperature)
