"""Losses between transformers, number by number: Jiao et al. 2020, Sun et al. 2019, Sanh et al. 2019."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]


def mapped(states: Matrix, weights: Matrix) -> Matrix:
    """H W, where `weights` holds a row for each of W's columns."""
    return [
        [sum(x * w for x, w in zip(state, row, strict=True)) for row in weights]
        for state in states
    ]


def mse(first: Matrix, second: Matrix) -> float:
    squares = [
        (a - b) ** 2
        for r, s in zip(first, second, strict=True)
        for a, b in zip(r, s, strict=True)
    ]
    return sum(squares) / len(squares)


def states(student: list[Matrix], teacher: list[Matrix], lengths: list[int]) -> float:
    """MSE of a sentence's own tokens, mean over sentences."""
    return sum(
        mse(s[:n], t[:n]) for s, t, n in zip(student, teacher, lengths, strict=True)
    ) / len(lengths)


def scores(
    student: list[list[Matrix]], teacher: list[list[Matrix]], lengths: list[int]
) -> float:
    """The mean over heads of the MSE between l x l matrices, mean over sentences."""
    total = 0.0
    for ours, theirs, n in zip(student, teacher, lengths, strict=True):
        heads = [
            mse([row[:n] for row in a[:n]], [row[:n] for row in b[:n]])
            for a, b in zip(ours, theirs, strict=True)
        ]
        total += sum(heads) / len(heads)
    return total / len(lengths)


def norm(x: Vector) -> float:
    return math.sqrt(sum(value**2 for value in x))


def patient(student: list[Matrix], teacher: list[Matrix]) -> float:
    """The squared distance between the first tokens' states of unit length, mean over sentences."""
    total = 0.0
    for (s, *_), (t, *_) in zip(student, teacher, strict=True):
        a, b = norm(s), norm(t)
        total += sum((x / a - y / b) ** 2 for x, y in zip(s, t, strict=True))
    return total / len(student)


def cosine(student: list[Matrix], teacher: list[Matrix], lengths: list[int]) -> float:
    """1 - cos, mean over a sentence's own tokens, mean over sentences."""
    total = 0.0
    for ours, theirs, n in zip(student, teacher, lengths, strict=True):
        pairs = list(zip(ours, theirs, strict=True))[:n]
        total += (
            sum(
                1 - sum(x * y for x, y in zip(s, t, strict=True)) / (norm(s) * norm(t))
                for s, t in pairs
            )
            / n
        )
    return total / len(lengths)
