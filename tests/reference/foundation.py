"""Cosines of features, bilinear interpolation, and similarities to a queue, with plain loops."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, soft_target_loss, softened


def cosine(x: list[float], y: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return product / (math.hypot(*x) * math.hypot(*y))


def distance(student: Rows, teacher: Rows) -> float:
    """One minus the cosine, mean over vectors."""
    cosines = [cosine(x, y) for x, y in zip(student, teacher, strict=True)]
    return 1 - math.fsum(cosines) / len(cosines)


def interpolated(plane: Rows, height: int, width: int) -> Rows:
    """A plane of values at another size: between the centers of the four nearest pixels."""

    def places(size: int, at: int, length: int) -> tuple[int, int, float]:
        place = max(0.0, (at + 0.5) * length / size - 0.5)
        first = min(int(place), length - 1)
        return first, min(first + 1, length - 1), place - first

    rows = []
    for y in range(height):
        top, bottom, down = places(height, y, len(plane))
        row = []
        for x in range(width):
            left, right, across = places(width, x, len(plane[0]))
            upper = (1 - across) * plane[top][left] + across * plane[top][right]
            lower = (1 - across) * plane[bottom][left] + across * plane[bottom][right]
            row.append((1 - down) * upper + down * lower)
        rows.append(row)
    return rows


def similarities(rows: Rows, queue: Rows) -> Rows:
    return [[cosine(row, entry) for entry in queue] for row in rows]


def queue_loss(
    student: Rows, teacher: Rows, queue: Rows, own: float, target: float
) -> float:
    """KL of the distributions over the queue, at the temperatures of both sides."""
    scaled = [[value / own for value in row] for row in similarities(student, queue)]
    targets = [softened(row, target) for row in similarities(teacher, queue)]
    return soft_target_loss(scaled, targets, 1.0)
