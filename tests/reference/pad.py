"""Prime-aware adaptive distillation, from Zhang et al. 2020."""

from __future__ import annotations

import math

from tests.reference.vid import Matrix, Vector, times


def linear(rows: Matrix, weight: Matrix, bias: Vector) -> Matrix:
    return [
        [v + b for v, b in zip(times(weight, row), bias, strict=True)] for row in rows
    ]


def batch_normalized(rows: Matrix, eps: float) -> Matrix:
    """Each column less its mean, over the root of its variance plus eps."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = math.fsum(column) / len(column)
        variance = math.fsum((v - mean) ** 2 for v in column) / len(column)
        columns.append([(v - mean) / math.sqrt(variance + eps) for v in column])
    return [list(row) for row in zip(*columns, strict=True)]


def distance(student: Matrix, teacher: Matrix, log_variance: Matrix) -> float:
    terms = [
        (t - s) ** 2 / (1e-6 + math.exp(v)) + v
        for rows in zip(student, teacher, log_variance, strict=True)
        for s, t, v in zip(*rows, strict=True)
    ]
    return math.fsum(terms) / len(terms)
