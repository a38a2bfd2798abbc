"""Lv et al. 2024: Gaussians with diagonal covariance over the positions of a map."""

from __future__ import annotations

import math

from tests.reference.at import Map, Maps


def moments(grid: Map, cells: int) -> list[tuple[float, float]]:
    """Mean and deviation of a channel in each cell; the deviation divides by n - 1."""
    height, width = len(grid), len(grid[0])
    found = []
    for i in range(cells):
        rows = range(
            math.floor(i * height / cells), math.ceil((i + 1) * height / cells)
        )
        for j in range(cells):
            first = math.floor(j * width / cells)
            columns = range(first, math.ceil((j + 1) * width / cells))
            values = [grid[y][x] for y in rows for x in columns]
            mean = math.fsum(values) / len(values)
            squares = math.fsum((value - mean) ** 2 for value in values)
            found.append((mean, math.sqrt(squares / (len(values) - 1) + 1e-5)))
    return found


def distance(
    student: list[Maps], teacher: list[Maps], mean_weight: float, cells: int
) -> float:
    """Sum over channels, mean over samples and cells."""
    total = 0.0
    for sample, target in zip(student, teacher, strict=True):
        for own, other in zip(sample, target, strict=True):
            pairs = zip(moments(own, cells), moments(other, cells), strict=True)
            for (m, s), (n, t) in pairs:
                total += mean_weight * (m - n) ** 2 + (s - t) ** 2
    return total / len(student) / cells**2
