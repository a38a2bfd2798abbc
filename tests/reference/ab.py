"""Activation boundaries, from Heo et al. 2019."""

from __future__ import annotations

from tests.reference.at import Maps


def boundary(student: float, teacher: float, margin: float) -> float:
    """One element: the two terms of the alternative loss."""
    value = 0.0
    if student > -margin and teacher <= 0:
        value += (student + margin) ** 2
    if student <= margin and teacher > 0:
        value += (student - margin) ** 2
    return value


def distance(student: list[Maps], teacher: list[Maps], margin: float = 1.0) -> float:
    """Of one pair of layers of one shape, summed over elements, mean over samples."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for own, target in zip(s, t, strict=True):
            for own_line, target_line in zip(own, target, strict=True):
                for a, b in zip(own_line, target_line, strict=True):
                    total += boundary(a, b, margin)
    return total / len(student)
