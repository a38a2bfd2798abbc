"""Zhou et al. 2021: soft targets, weighted by how well either network knows the label."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def wsld(student: Rows, teacher: Rows, target: list[int], temperature: float) -> float:
    """T^2 (1 - exp(-CE_s / (CE_t + 1e-7))) CE(p_T, q_T), mean over the labelled rows."""
    values = []
    for z, v, label in zip(student, teacher, target, strict=True):
        if label == -100:
            continue
        student_cost = -math.log(softened(z, 1.0)[label])
        teacher_cost = -math.log(softened(v, 1.0)[label])
        weight = 1 - math.exp(-student_cost / (teacher_cost + 1e-7))
        q = softened(z, temperature)
        p = softened(v, temperature)
        soft = -math.fsum(a * math.log(b) for a, b in zip(p, q, strict=True))
        values.append(temperature**2 * weight * soft)
    return math.fsum(values) / len(values)
