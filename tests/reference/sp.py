"""Tung and Mori 2019, section 3: similarities of the samples of a batch, to the student and to the teacher."""

from __future__ import annotations

import math

Rows = list[list[float]]


def similarities(features: Rows) -> Rows:
    """g_ij = f_i . f_j, each row divided by its L2 norm; a row of zeros stays one."""
    result = []
    for f in features:
        row = [
            math.fsum(a * b for a, b in zip(f, other, strict=True))
            for other in features
        ]
        norm = math.sqrt(math.fsum(g * g for g in row))
        result.append([g / norm if norm > 0 else 0.0 for g in row])
    return result


def sp(student: Rows, teacher: Rows) -> float:
    """1 / b^2 times the squared Frobenius norm of the difference."""
    ours, theirs = similarities(student), similarities(teacher)
    b = len(student)
    return (
        math.fsum((ours[i][j] - theirs[i][j]) ** 2 for i in range(b) for j in range(b))
        / b**2
    )
