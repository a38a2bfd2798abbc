"""Tian et al. 2020: contrasting students with a memory of teachers, and the reverse; and the same within a batch."""

from __future__ import annotations

import math

Rows = list[list[float]]


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def unit(x: list[float]) -> list[float]:
    norm = math.sqrt(dot(x, x))
    return [a / norm for a in x]


def embedded(features: Rows, weight: Rows, bias: list[float]) -> Rows:
    """A linear layer, then length one."""
    return [
        unit([dot(row, f) + b for row, b in zip(weight, bias, strict=True)])
        for f in features
    ]


def scores(own: Rows, bank: Rows, chosen: list[list[int]], temperature: float) -> Rows:
    """exp(inner product / temperature) of each sample with each of its rows of the bank."""
    return [
        [math.exp(dot(x, bank[row]) / temperature) for row in rows]
        for x, rows in zip(own, chosen, strict=True)
    ]


def first_constant(of: Rows, total: int) -> float:
    """Z of the authors' code: the mean score of the first batch times the number of rows. The paper has none: 1."""
    every = [score for row in of for score in row]
    return math.fsum(every) / len(every) * total


def critic_loss(of: Rows, constant: float, total: int) -> float:
    """- log h(own) - sum over negatives log(1 - h), h = p / (p + N / M), p = score / Z; mean over samples."""
    rows = []
    for scored in of:
        noise = (len(scored) - 1) / total
        h = [s / constant / (s / constant + noise) for s in scored]
        rows.append(-math.log(h[0]) - math.fsum(math.log(1 - other) for other in h[1:]))
    return math.fsum(rows) / len(rows)


def remembered(bank: Rows, index: list[int], new: Rows, momentum: float) -> Rows:
    """The bank after a step."""
    changed = [list(row) for row in bank]
    for row, x in zip(index, new, strict=True):
        changed[row] = unit(
            [
                momentum * a + (1 - momentum) * b
                for a, b in zip(bank[row], x, strict=True)
            ]
        )
    return changed


def info_nce(
    own: Rows, other: Rows, target: list[int], temperature: float, by_class: bool
) -> float:
    """- log of the share of a sample's own partner among itself and its negatives: from both sides, mean over samples."""
    total = 0.0
    for here, there in ((own, other), (other, own)):
        for i, x in enumerate(here):
            alike = [
                by_class and target[i] == target[j] and target[i] >= 0
                for j in range(len(there))
            ]
            powers = [
                math.exp(dot(x, y) / temperature)
                for j, y in enumerate(there)
                if j == i or not alike[j]
            ]
            total -= math.log(
                math.exp(dot(x, there[i]) / temperature) / math.fsum(powers)
            )
    return total / len(own)
