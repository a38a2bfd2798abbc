"""Channel-wise distillation, from Shu et al. 2021."""

from __future__ import annotations

import math

from tests.reference.at import Map, Maps


def distribution(grid: Map, temperature: float) -> list[float]:
    values = [value / temperature for line in grid for value in line]
    powers = [math.exp(value - max(values)) for value in values]
    return [power / math.fsum(powers) for power in powers]


def distance(student: list[Maps], teacher: list[Maps], temperature: float) -> float:
    """T^2 times the mean over samples and channels of KL(teacher | student) over positions."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        for own, target in zip(s, t, strict=True):
            q, p = distribution(own, temperature), distribution(target, temperature)
            values.append(
                math.fsum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
            )
    return temperature**2 * math.fsum(values) / len(values)


def interpolated(grid: Map, height: int, width: int) -> Map:
    """Bilinear, with the centers of corner pixels not aligned: positions outside repeat the edge."""
    rows, columns = len(grid), len(grid[0])

    def places(i: int, before: int, after: int) -> tuple[int, int, float]:
        center = max(0.0, (i + 0.5) * before / after - 0.5)
        low = min(int(center), before - 1)
        return low, min(low + 1, before - 1), center - low

    result = []
    for i in range(height):
        y, below, dy = places(i, rows, height)
        line = []
        for j in range(width):
            x, right, dx = places(j, columns, width)
            upper = grid[y][x] * (1 - dx) + grid[y][right] * dx
            lower = grid[below][x] * (1 - dx) + grid[below][right] * dx
            line.append(upper * (1 - dy) + lower * dy)
        result.append(line)
    return result
