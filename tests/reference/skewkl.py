"""Ko et al. 2024, equations 4 and 5."""

from __future__ import annotations

from tests.reference.kd import Rows
from tests.reference.response import kl, mean_over_rows


def mixture(a: list[float], b: list[float], alpha: float) -> list[float]:
    return [alpha * x + (1 - alpha) * y for x, y in zip(a, b, strict=True)]


def skew_kl(student: Rows, teacher: Rows, alpha: float, temperature: float) -> float:
    """KL(p | alpha p + (1 - alpha) q), mean over rows."""

    def divergence(p: list[float], q: list[float]) -> float:
        return kl(p, mixture(p, q, alpha))

    return mean_over_rows(divergence, student, teacher, temperature)


def skew_reverse_kl(
    student: Rows, teacher: Rows, alpha: float, temperature: float
) -> float:
    """KL(q | (1 - alpha) p + alpha q), mean over rows."""

    def divergence(p: list[float], q: list[float]) -> float:
        return kl(q, mixture(q, p, alpha))

    return mean_over_rows(divergence, student, teacher, temperature)
