"""KL(q | p), the student's distribution first (Gu et al. 2024, equation 1, for one position)."""

from __future__ import annotations

from tests.reference.kd import Rows
from tests.reference.response import kl, mean_over_rows


def reverse_kl(student: Rows, teacher: Rows, temperature: float) -> float:
    """T^2 sum_k q_k log(q_k / p_k), mean over rows."""
    return temperature**2 * mean_over_rows(
        lambda p, q: kl(q, p), student, teacher, temperature
    )
