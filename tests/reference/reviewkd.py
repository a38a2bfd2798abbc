"""Knowledge review, from Chen et al. 2021: the fusion of layers and the loss at several resolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.reference.at import Map, Maps, averaged_down
from tests.reference.fitnets import Kernel, batch_normalized, convolved


def mean_square(student: list[Maps], teacher: list[Maps]) -> float:
    squares = [
        (a - b) ** 2
        for s, t in zip(student, teacher, strict=True)
        for own, target in zip(s, t, strict=True)
        for own_line, target_line in zip(own, target, strict=True)
        for a, b in zip(own_line, target_line, strict=True)
    ]
    return math.fsum(squares) / len(squares)


def context(student: list[Maps], teacher: list[Maps]) -> float:
    total, weight, weights = mean_square(student, teacher), 1.0, 1.0
    shorter = min(len(teacher[0][0]), len(teacher[0][0][0]))
    for size in (4, 2, 1):
        if size < shorter:
            weight /= 2
            weights += weight
            down = [
                [
                    [averaged_down(channel, size, size) for channel in maps]
                    for maps in side
                ]
                for side in (student, teacher)
            ]
            total += weight * mean_square(*down)
    return total / weights


def nearest(grid: Map, height: int, width: int) -> Map:
    rows, columns = len(grid), len(grid[0])
    return [
        [grid[i * rows // height][j * columns // width] for j in range(width)]
        for i in range(height)
    ]


def resized(samples: list[Maps], height: int, width: int) -> list[Maps]:
    return [[nearest(channel, height, width) for channel in maps] for maps in samples]


@dataclass
class Weights:
    """Of one fusion; the attention's and its bias are None for the last layer."""

    reduce: Kernel
    expand: Kernel
    attention: Kernel | None
    bias: list[float] | None


def normalized(samples: list[Maps], weight: Kernel, padding: int) -> list[Maps]:
    zeros = [0.0] * len(weight)
    return batch_normalized(
        [convolved(maps, weight, zeros, 1, padding) for maps in samples]
    )


def fused(
    feature: list[Maps],
    later: list[Maps] | None,
    size: tuple[int, int],
    weights: Weights,
) -> tuple[list[Maps], list[Maps]]:
    joined = normalized(feature, weights.reduce, 0)
    if weights.attention is not None:
        assert later is not None
        assert weights.bias is not None
        height, width = len(joined[0][0]), len(joined[0][0][0])
        later = resized(later, height, width)
        result = []
        for own, other in zip(joined, later, strict=True):
            scores = convolved(own + other, weights.attention, weights.bias)
            gates = [
                [[1 / (1 + math.exp(-value)) for value in line] for line in score]
                for score in scores
            ]
            result.append(
                [
                    [
                        [
                            a[y][x] * gates[0][y][x] + b[y][x] * gates[1][y][x]
                            for x in range(width)
                        ]
                        for y in range(height)
                    ]
                    for a, b in zip(own, other, strict=True)
                ]
            )
        joined = result
    joined = resized(joined, *size)
    return normalized(joined, weights.expand, 1), joined


def review(
    student: list[list[Maps]], teacher: list[list[Maps]], weights: list[Weights]
) -> float:
    """Layers of samples of maps, from the input to the output: the sum over layers."""
    total, later = 0.0, None
    for layer in reversed(range(len(student))):
        size = (len(teacher[layer][0][0]), len(teacher[layer][0][0][0]))
        predicted, later = fused(student[layer], later, size, weights[layer])
        total += context(predicted, teacher[layer])
    return total
