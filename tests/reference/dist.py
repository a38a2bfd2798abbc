"""Huang et al. 2022, equations 5 to 8: Pearson's correlation within rows and within columns."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened


def correlation(x: list[float], y: list[float]) -> float:
    """Covariance over the product of standard deviations; 0 for a constant side."""
    mean_x = math.fsum(x) / len(x)
    mean_y = math.fsum(y) / len(y)
    covariance = math.fsum(
        (a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)
    )
    variance_x = math.fsum((a - mean_x) ** 2 for a in x)
    variance_y = math.fsum((b - mean_y) ** 2 for b in y)
    # Of the same class in one row, or of rounding alone.
    if min(variance_x, variance_y) < 1e-30:
        return 0.0
    return covariance / math.sqrt(variance_x) / math.sqrt(variance_y)


def distance(first: Rows, second: Rows) -> float:
    """One minus the mean correlation of the rows."""
    values = [correlation(x, y) for x, y in zip(first, second, strict=True)]
    return 1 - math.fsum(values) / len(values)


def dist(
    student: Rows, teacher: Rows, beta: float, gamma: float, temperature: float
) -> float:
    """T^2 (beta * distance of rows + gamma * distance of columns)."""
    q = [softened(z, temperature) for z in student]
    p = [softened(v, temperature) for v in teacher]
    columns = [[list(column) for column in zip(*rows, strict=True)] for rows in (q, p)]
    return temperature**2 * (beta * distance(q, p) + gamma * distance(*columns))
