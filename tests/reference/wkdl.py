"""Lv et al. 2024: transport between the other classes, by scaling without logarithms."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened
from tests.reference.response import without


def costs_of(similarities: Rows, kappa: float) -> Rows:
    """1 - exp(-kappa (1 - s)), and 1e-8."""
    return [
        [1 - math.exp(-kappa * (1 - s)) + 1e-8 for s in row] for row in similarities
    ]


def sinkhorn(q: list[float], p: list[float], costs: Rows, iterations: int) -> float:
    """sum of flow * cost, flow = u K v; v = p / (K'u), u = q / (K v), without logarithms."""
    classes = range(len(q))
    kernel = [[math.exp(-c / 0.05) for c in row] for row in costs]
    u = [1 / len(q) for _ in classes]
    v = u
    for _ in range(iterations):
        v = [p[j] / math.fsum(kernel[i][j] * u[i] for i in classes) for j in classes]
        u = [q[i] / math.fsum(kernel[i][j] * v[j] for j in classes) for i in classes]
    return math.fsum(
        u[i] * kernel[i][j] * v[j] * costs[i][j] for i in classes for j in classes
    )


def wkdl(
    student: Rows,
    teacher: Rows,
    target: list[int],
    costs: Rows,
    options: tuple[float, float, int],
) -> float:
    """-p_t log q_t + w W, mean over labelled rows; the options are w, T and the iterations."""
    transport, temperature, iterations = options
    values = []
    for z, v, label in zip(student, teacher, target, strict=True):
        if label == -100:
            continue
        own = -softened(v, 1.0)[label] * math.log(softened(z, 1.0)[label])
        q = without(softened(z, temperature), label)
        p = without(softened(v, temperature), label)
        rest = [
            row[:label] + row[label + 1 :] for row in costs[:label] + costs[label + 1 :]
        ]
        values.append(own + transport * sinkhorn(q, p, rest, iterations))
    return math.fsum(values) / len(values)
