"""The hard losses, written from their definitions."""

from __future__ import annotations

import math


def cross_entropy(
    logits: list[list[float]], target: list[int], smoothing: float = 0.0
) -> float:
    """Mean over the labelled rows of -sum_k y_k log q_k, y = (1 - s) one-hot + s / K; 0 without labelled rows."""
    rows = []
    for row, label in zip(logits, target, strict=True):
        if label == -100:
            continue
        total = math.fsum(math.exp(z) for z in row)
        loss = 0.0
        for k, z in enumerate(row):
            y = smoothing / len(row) + (1 - smoothing if k == label else 0.0)
            loss -= y * math.log(math.exp(z) / total)
        rows.append(loss)
    return math.fsum(rows) / len(rows) if rows else 0.0


def mean_squared_error(values: list[float], targets: list[float]) -> float:
    """Mean over the known targets of (z - y)^2; NaN is unknown; 0 without known targets."""
    squares = []
    for value, target in zip(values, targets, strict=True):
        if not math.isnan(target):
            squares.append((value - target) ** 2)
    return math.fsum(squares) / len(squares) if squares else 0.0
