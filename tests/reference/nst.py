"""Neuron selectivity transfer, from Huang and Wang 2017: a discrepancy between two sets of channels."""

from __future__ import annotations

import math

from tests.reference.at import Maps, averaged_down, smaller, unit


def kernel(first: list[float], second: list[float]) -> float:
    """(a . b)^2."""
    return math.fsum(x * y for x, y in zip(first, second, strict=True)) ** 2


def mean_kernel(first: list[list[float]], second: list[list[float]]) -> float:
    values = [kernel(a, b) for a in first for b in second]
    return math.fsum(values) / len(values)


def distance(student: list[Maps], teacher: list[Maps]) -> float:
    """Of one pair of layers, mean over samples; the larger features are brought down."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        size = smaller(s[0], t[0])
        ours = [unit(averaged_down(channel, *size)) for channel in s]
        theirs = [unit(averaged_down(channel, *size)) for channel in t]
        within = mean_kernel(ours, ours) + mean_kernel(theirs, theirs)
        values.append(within - 2 * mean_kernel(ours, theirs))
    return math.fsum(values) / len(values)
