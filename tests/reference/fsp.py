"""The flow of the solution procedure, from Yim et al. 2017, and as the CIFAR-100 benchmark changes it."""

from __future__ import annotations

import math

from tests.reference.at import Map, Maps, averaged_down, smaller


def maxima(grid: Map, height: int, width: int) -> Map:
    """Adaptive pooling with the cells of `averaged_down`, and the largest value of each."""
    rows, columns = len(grid), len(grid[0])
    result = []
    for i in range(height):
        line = []
        for j in range(width):
            cell = [
                grid[y][x]
                for y in range(i * rows // height, math.ceil((i + 1) * rows / height))
                for x in range(
                    j * columns // width, math.ceil((j + 1) * columns / width)
                )
            ]
            line.append(max(cell))
        result.append(line)
    return result


def flow(lower: Maps, upper: Maps, paper: bool) -> list[float]:
    """The entries of the matrix of one sample."""
    size = smaller(lower[0], upper[0])
    pool = maxima if paper else averaged_down
    entries = []
    for first in lower:
        for second in upper:
            a, b = pool(first, *size), pool(second, *size)
            products = [
                a[y][x] * b[y][x] for y in range(size[0]) for x in range(size[1])
            ]
            entries.append(math.fsum(products) / len(products))
    return entries


def distance(
    student: list[list[Maps]], teacher: list[list[Maps]], paper: bool
) -> float:
    """Layers of samples of maps: the sum over pairs of layers, mean over samples (and entries)."""
    total = 0.0
    for layer in range(len(student) - 1):
        squares = []
        samples = len(student[layer])
        for i in range(samples):
            ours = flow(student[layer][i], student[layer + 1][i], paper)
            theirs = flow(teacher[layer][i], teacher[layer + 1][i], paper)
            squares += [(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]
        total += math.fsum(squares) / (samples if paper else len(squares))
    return total
