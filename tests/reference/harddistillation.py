"""Touvron et al. 2021, equation 3: the cross-entropy with the teacher's decision."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def hard(student: Rows, teacher: Rows) -> float:
    """-log q of the class with the teacher's largest logit, mean over rows."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        decision = v.index(max(v))
        values.append(-math.log(softened(z, 1.0)[decision]))
    return math.fsum(values) / len(values)
