"""Shing et al. 2025, equation 3 and algorithm 1, in plain numbers."""

from __future__ import annotations

import math

from tests.reference.kd import Rows
from tests.reference.response import kl


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def taid(student: Rows, teacher: Rows, t: float) -> float:
    """KL(p_t | q) at temperature 1, mean over rows."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        mixed = [(1 - t) * a + t * b for a, b in zip(z, v, strict=True)]
        values.append(kl(softmax(mixed), softmax(z)))
    return math.fsum(values) / len(values)


def positions(
    losses: list[float], steps: int, start: float, alpha: float, beta: float
) -> list[float]:
    """The position after each step, given the loss of each step."""
    t = start
    momentum = 0.0
    before = None
    result = []
    for number, loss in enumerate(losses, start=1):
        if before is not None:
            momentum = beta * momentum + (1 - beta) * (before - loss) / (before + 1e-15)
        delta = alpha / (1 + math.exp(-momentum)) * (1 - t)
        line = start + (1 - start) * number / steps
        t = min(1.0, max(line, t + delta))
        before = loss
        result.append(t)
    return result
