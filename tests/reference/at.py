"""Attention transfer, from Zagoruyko and Komodakis 2017, section 3.1, and as the CIFAR-100 benchmark changes it."""

from __future__ import annotations

import math

Map = list[list[float]]
"""(H, W)"""
Maps = list[Map]
"""(C, H, W): one sample's features."""


def averaged_down(grid: Map, height: int, width: int) -> Map:
    """Adaptive average pooling: cell i of n covers rows floor(i N / n) to ceil((i + 1) N / n) - 1, and columns alike."""
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
            line.append(math.fsum(cell) / len(cell))
        result.append(line)
    return result


def smaller(first: Map, second: Map) -> tuple[int, int]:
    return min(len(first), len(second)), min(len(first[0]), len(second[0]))


def attention(features: Maps) -> Map:
    """F_sum^2(A) = sum_c |A_c|^2, a map of positions."""
    rows, columns = len(features[0]), len(features[0][0])
    return [
        [
            math.fsum(abs(channel[y][x]) ** 2 for channel in features)
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def unit(grid: Map) -> list[float]:
    """vec(F(A)) / ||vec(F(A))||_2; zeros for no activation at all."""
    vector = [value for line in grid for value in line]
    norm = math.sqrt(math.fsum(value**2 for value in vector))
    return [value / norm for value in vector] if norm else vector


def paper(student: list[Maps], teacher: list[Maps]) -> float:
    """1/2 ||q_S - q_T||_2 of one pair of layers, equation 2, mean over samples; the larger attention map is brought down."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = attention(s), attention(t)
        size = smaller(ours, theirs)
        q_s, q_t = unit(averaged_down(ours, *size)), unit(averaged_down(theirs, *size))
        values.append(
            0.5
            * math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(q_s, q_t, strict=True)))
        )
    return math.fsum(values) / len(values)


def benchmark(student: list[Maps], teacher: list[Maps]) -> float:
    """The mean over samples and positions of (q_S - q_T)^2; the larger features are brought down, before their map."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        size = smaller(s[0], t[0])
        q_s = unit(attention([averaged_down(channel, *size) for channel in s]))
        q_t = unit(attention([averaged_down(channel, *size) for channel in t]))
        values += [(a - b) ** 2 for a, b in zip(q_s, q_t, strict=True)]
    return math.fsum(values) / len(values)
