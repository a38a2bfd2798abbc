"""Peng et al. 2019: correlations between samples, and what the CIFAR-100 benchmark computes in their place."""

from __future__ import annotations

import math

from tests.reference.pkt import cosine
from tests.reference.sp import Rows


def embedded(features: Rows, weight: Rows, bias: list[float]) -> Rows:
    result = []
    for f in features:
        row = []
        for w, b in zip(weight, bias, strict=True):
            row.append(math.fsum(x * y for x, y in zip(f, w, strict=True)) + b)
        result.append(row)
    return result


def kernel(features: Rows, gamma: float, order: int) -> Rows:
    """e^-2g times the sum of (2g)^p / p! times the cosine's power p."""
    result = []
    for one in features:
        row = []
        for two in features:
            value, term = 0.0, 1.0
            for power in range(order + 1):
                value += term
                term *= 2 * gamma * cosine(one, two) / (power + 1)
            row.append(value / math.exp(2 * gamma))
        result.append(row)
    return result


def paper(student: Rows, teacher: Rows, gamma: float = 0.4, order: int = 2) -> float:
    ours, theirs = kernel(student, gamma, order), kernel(teacher, gamma, order)
    b = len(student)
    return (
        math.fsum((ours[i][j] - theirs[i][j]) ** 2 for i in range(b) for j in range(b))
        / b**2
    )


def benchmark(student: Rows, teacher: Rows) -> float:
    total = 0.0
    for i in range(len(student) - 1):
        for d in range(len(student[0])):
            here = abs(student[i][d] - teacher[i][d])
            following = abs(student[i + 1][d] - teacher[i + 1][d])
            total += here * following
    return total / (len(student) - 1) if len(student) > 1 else 0.0
