"""Ba and Caruana 2014, equation 1: half the squared distance between logits."""

from __future__ import annotations

import math


def logit_mse(
    student: list[list[float]],
    teacher: list[list[float]],
    mean: bool = False,
    center: bool = False,
) -> float:
    """1/2 sum over classes (or mean) of squared differences, mean over rows; `center` removes each side's mean."""
    rows = []
    for z, v in zip(student, teacher, strict=True):
        z_mean = math.fsum(z) / len(z) if center else 0.0
        v_mean = math.fsum(v) / len(v) if center else 0.0
        total = math.fsum(
            ((a - z_mean) - (b - v_mean)) ** 2 for a, b in zip(z, v, strict=True)
        )
        rows.append(total / (2 * len(z)) if mean else total / 2)
    return math.fsum(rows) / len(rows)
