"""The terms of DeepInversion (Yin et al. 2020) in plain Python."""

from __future__ import annotations

import math

from tests.reference.at import Map, Maps
from tests.reference.kd import softened


def statistics(
    batch: list[Maps], running_mean: list[float], running_var: list[float]
) -> float:
    """Norms of the differences of mean and biased variance, over samples and positions."""
    means = []
    variances = []
    for channel in range(len(running_mean)):
        values = [x for sample in batch for row in sample[channel] for x in row]
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((x - mean) ** 2 for x in values) / len(values))
    return math.dist(means, running_mean) + math.dist(variances, running_var)


def variation(image: Maps) -> float:
    """Four norms, of the differences to the right, below, and on both diagonals."""
    return sum(_norm(image, step) for step in ((0, 1), (1, 0), (1, 1), (1, -1)))


def _norm(image: Maps, step: tuple[int, int]) -> float:
    squares = []
    for channel in image:
        for y in range(len(channel)):
            for x in range(len(channel[0])):
                squares += _square(channel, (y, x), step)
    return math.sqrt(math.fsum(squares))


def _square(channel: Map, place: tuple[int, int], step: tuple[int, int]) -> list[float]:
    y, x = place[0] + step[0], place[1] + step[1]
    if y >= len(channel) or not 0 <= x < len(channel[0]):
        return []
    return [(channel[y][x] - channel[place[0]][place[1]]) ** 2]


def jensen_shannon(z: list[float], v: list[float], t: float) -> float:
    """The divergence from the mixture with equal shares, of one row."""
    q, p = softened(z, t), softened(v, t)
    total = 0.0
    for a, b in zip(q, p, strict=True):
        mixture = (a + b) / 2
        total += a * math.log(a / mixture) / 2 + b * math.log(b / mixture) / 2
    return total
