"""Park et al. 2019, section 3.2: relations among two and three samples; `benchmark` divides by all entries."""

from __future__ import annotations

import math
from itertools import permutations

Rows = list[list[float]]


def huber(x: float, y: float) -> float:
    """(x - y)^2 / 2 up to a distance of 1, then |x - y| - 1/2."""
    distance = abs(x - y)
    return distance**2 / 2 if distance <= 1 else distance - 0.5


def length(x: list[float], y: list[float]) -> float:
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def potentials(rows: Rows) -> dict[tuple[int, int], float]:
    """The distance of each ordered pair over the mean of the distances above zero."""
    distances = {
        (i, j): length(rows[i], rows[j]) for i, j in permutations(range(len(rows)), 2)
    }
    there = [d for d in distances.values() if d > 0]
    mean = math.fsum(there) / len(there) if there else 1.0
    return {pair: d / mean for pair, d in distances.items()}


def cosine(x: list[float], vertex: list[float], y: list[float]) -> float:
    """Of the angle x, vertex, y; 0 where an edge has no length."""
    norm = length(x, vertex) * length(y, vertex)
    dot = math.fsum((a - v) * (b - v) for a, v, b in zip(x, vertex, y, strict=True))
    return dot / norm if norm > 0 else 0.0


def rkd_distance(student: Rows, teacher: Rows, benchmark: bool = False) -> float:
    ours, theirs = potentials(student), potentials(teacher)
    n = len(student)
    total = math.fsum(huber(ours[pair], theirs[pair]) for pair in ours)
    return total / (n * n if benchmark else max(n * (n - 1), 1))


def rkd_angle(student: Rows, teacher: Rows, benchmark: bool = False) -> float:
    n = len(student)
    costs = [
        huber(
            cosine(student[i], student[j], student[k]),
            cosine(teacher[i], teacher[j], teacher[k]),
        )
        for i, j, k in permutations(range(n), 3)
    ]
    return math.fsum(costs) / (n**3 if benchmark else max(len(costs), 1))


def rkd(
    student: Rows,
    teacher: Rows,
    benchmark: bool = False,
    distance: float = 25.0,
    angle: float = 50.0,
) -> float:
    return distance * rkd_distance(student, teacher, benchmark) + angle * rkd_angle(
        student, teacher, benchmark
    )
