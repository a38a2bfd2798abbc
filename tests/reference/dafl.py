"""The three terms of DAFL (Chen et al. 2019) in plain Python."""

from __future__ import annotations

import math


def probabilities(row: list[float]) -> list[float]:
    powers = [math.exp(logit - max(row)) for logit in row]
    return [power / sum(powers) for power in powers]


def one_hot(logits: list[list[float]]) -> float:
    """The mean of -log of the largest probability."""
    return sum(-math.log(max(probabilities(row))) for row in logits) / len(logits)


def negative_entropy(logits: list[list[float]]) -> float:
    """Of the mean distribution."""
    rows = [probabilities(row) for row in logits]
    total = 0.0
    for k in range(len(rows[0])):
        mean = sum(row[k] for row in rows) / len(rows)
        total += mean * math.log(mean)
    return total


def dafl(
    logits: list[list[float]],
    feature: list[list[float]],
    oh: float,
    a: float,
    ie: float,
) -> float:
    entries = [abs(entry) for row in feature for entry in row]
    activation = sum(entries) / len(entries)
    return oh * one_hot(logits) - a * activation + ie * negative_entropy(logits)
