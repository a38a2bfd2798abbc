"""Jin et al. 2023: each sample, pairs of samples and pairs of classes."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, kd, softened


def gram(rows: Rows) -> Rows:
    """Products of all pairs of rows."""
    return [
        [math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in rows]
        for x in rows
    ]


def squared_distance(first: Rows, second: Rows) -> float:
    """The squared Frobenius norm of the difference."""
    values = []
    for x, y in zip(first, second, strict=True):
        values += [(a - b) ** 2 for a, b in zip(x, y, strict=True)]
    return math.fsum(values)


def transposed(rows: Rows) -> Rows:
    """Columns as rows."""
    return [list(column) for column in zip(*rows, strict=True)]


def levels(
    student: Rows, teacher: Rows, temperature: float
) -> tuple[float, float, float]:
    """The terms of a sample, of the batch and of the classes."""
    q = [softened(z, temperature) for z in student]
    p = [softened(v, temperature) for v in teacher]
    samples = squared_distance(gram(p), gram(q)) / len(q)
    classes = squared_distance(gram(transposed(p)), gram(transposed(q))) / len(q[0])
    return kd(student, teacher, temperature), samples, classes
