"""Zhao et al. 2022, section 3.1: the target class against all others, and the others among themselves."""

from __future__ import annotations

import math

Rows = list[list[float]]


def parts(
    z: list[float], v: list[float], target: int, temperature: float
) -> tuple[float, float]:
    """TCKD and NCKD of one sample with student logits z and teacher logits v, without T^2."""
    binary, others = [], []
    for logits in (v, z):
        powers = [math.exp(x / temperature) for x in logits]
        rest = [power for k, power in enumerate(powers) if k != target]
        binary.append(
            (powers[target] / math.fsum(powers), math.fsum(rest) / math.fsum(powers))
        )
        others.append([power / math.fsum(rest) for power in rest])
    tckd = math.fsum(p * math.log(p / q) for p, q in zip(*binary, strict=True))
    nckd = math.fsum(p * math.log(p / q) for p, q in zip(*others, strict=True))
    return tckd, nckd


def dkd(
    student: Rows,
    teacher: Rows,
    target: list[int],
    alpha: float,
    beta: float,
    temperature: float,
) -> float:
    """T^2 (alpha TCKD + beta NCKD), mean over the labelled rows; 0 without labelled rows."""
    rows = []
    for z, v, label in zip(student, teacher, target, strict=True):
        if label != -100:
            tckd, nckd = parts(z, v, label, temperature)
            rows.append(alpha * tckd + beta * nckd)
    return temperature**2 * math.fsum(rows) / len(rows) if rows else 0.0
