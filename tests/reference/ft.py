"""Factor transfer, from Kim et al. 2018: the paraphraser's layers, and the distance between factors."""

from __future__ import annotations

import math

from tests.reference.at import Maps, averaged_down, smaller, unit


def leaky(features: Maps) -> Maps:
    return [
        [[v if v > 0 else 0.1 * v for v in line] for line in grid] for grid in features
    ]


def factor(features: Maps, paper: bool) -> list[float]:
    """A unit vector: of all elements, or of the mean over channels of the squares."""
    if paper:
        return unit([line for channel in features for line in channel])
    rows, columns = len(features[0]), len(features[0][0])
    return unit(
        [
            [
                math.fsum(channel[y][x] ** 2 for channel in features) / len(features)
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    )


def distance(student: list[Maps], teacher: list[Maps], paper: bool) -> float:
    """The mean over samples and elements of the absolute differences."""
    differences = []
    for s, t in zip(student, teacher, strict=True):
        size = smaller(s[0], t[0])
        ours = factor([averaged_down(channel, *size) for channel in s], paper)
        theirs = factor([averaged_down(channel, *size) for channel in t], paper)
        differences += [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return math.fsum(differences) / len(differences)


def error(reconstructed: list[Maps], features: list[Maps], paper: bool) -> float:
    """The mean absolute or squared error over all elements."""
    errors = [
        abs(a - b) if paper else (a - b) ** 2
        for r, f in zip(reconstructed, features, strict=True)
        for own, target in zip(r, f, strict=True)
        for own_line, target_line in zip(own, target, strict=True)
        for a, b in zip(own_line, target_line, strict=True)
    ]
    return math.fsum(errors) / len(errors)
