"""What SimKD, SRRL and CAT-KD compute with a classifier, with loops."""

from __future__ import annotations

import math

from tests.reference.at import Maps
from tests.reference.vid import Matrix, Vector, times


def pooled(features: Maps) -> Vector:
    """The mean over positions of each channel."""
    means = []
    for channel in features:
        values = [value for line in channel for value in line]
        means.append(math.fsum(values) / len(values))
    return means


def logits(vector: Vector, weight: Matrix, bias: Vector) -> Vector:
    return [value + b for value, b in zip(times(weight, vector), bias, strict=True)]


def mean_square(first: list[Vector], second: list[Vector]) -> float:
    squares = [
        (a - b) ** 2
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return math.fsum(squares) / len(squares)


def flat(features: Maps) -> Vector:
    return [value for channel in features for line in channel for value in line]
