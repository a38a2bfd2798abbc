"""The distance of VkD, from Miles et al. 2024: smooth L1 to a standardized feature."""

from __future__ import annotations

import math

from tests.reference.vid import Matrix, Vector


def standardized(row: Vector) -> Vector:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((v - mean) ** 2 for v in row) / len(row)
    return [(v - mean) / math.sqrt(variance + 1e-5) for v in row]


def smooth(difference: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def distance(projected: Matrix, teacher: Matrix) -> float:
    terms = [
        smooth(a - b)
        for row, target in zip(projected, teacher, strict=True)
        for a, b in zip(row, standardized(target), strict=True)
    ]
    return math.fsum(terms) / len(terms)
