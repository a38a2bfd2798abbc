"""Sun et al. 2025: the teacher's confidence for the label, and the classes ranked below it."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened
from tests.reference.response import kl


def scd(z: list[float], v: list[float], label: int, temperature: float) -> float:
    """T^2 KL((p_max, 1 - p_max) | (q_t, 1 - q_t))."""
    q = softened(z, temperature)
    p = softened(v, temperature)
    k = p.index(max(p))
    rest_p = math.fsum(p[:k] + p[k + 1 :])
    rest_q = math.fsum(q[:label] + q[label + 1 :])
    return temperature**2 * kl([p[k], rest_p], [q[label], rest_q])


def mcd(z: list[float], v: list[float], label: int, temperature: float) -> float:
    """T^2 KL over the classes k with v_k < v_t; 0 without any."""
    below = [k for k in range(len(v)) if v[k] < v[label]]
    if not below:
        return 0.0
    p = softened([v[k] for k in below], temperature)
    q = softened([z[k] for k in below], temperature)
    return temperature**2 * kl(p, q)


def rld(
    student: Rows,
    teacher: Rows,
    target: list[int],
    weights: tuple[float, float],
    temperatures: tuple[float, float],
) -> float:
    """alpha SCD at the first temperature and beta MCD at the second, mean over labelled rows."""
    values = []
    for z, v, label in zip(student, teacher, target, strict=True):
        if label != -100:
            confidence = scd(z, v, label, temperatures[0])
            masked = mcd(z, v, label, temperatures[1])
            values.append(weights[0] * confidence + weights[1] * masked)
    return math.fsum(values) / len(values)
