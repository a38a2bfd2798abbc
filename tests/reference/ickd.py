"""Inter-channel correlations, from Liu et al. 2021 and its authors' code."""

from __future__ import annotations

import math

from tests.reference.at import Maps


def matrix(features: Maps, normalized: bool) -> list[list[float]]:
    rows = []
    for first in features:
        row = []
        for second in features:
            pairs = zip(first, second, strict=True)
            row.append(
                math.fsum(
                    a * b for one, two in pairs for a, b in zip(one, two, strict=True)
                )
            )
        length = math.sqrt(math.fsum(value**2 for value in row)) if normalized else 1.0
        rows.append([value / length if length else value for value in row])
    return rows


def distance(student: list[Maps], teacher: list[Maps], code: bool) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = matrix(s, code), matrix(t, code)
        squares = math.fsum(
            (a - b) ** 2
            for one, two in zip(ours, theirs, strict=True)
            for a, b in zip(one, two, strict=True)
        )
        total += squares / (len(s) if code else len(s) ** 2)
    return total / len(student)
