"""Li et al. 2023: the learned temperature, and how far its gradient is reversed."""

from __future__ import annotations

import math


def temperature(theta: float, low: float, span: float) -> float:
    """low + span / (1 + e^-theta)."""
    return low + span / (1 + math.exp(-theta))


def reversal(epoch: int, length: int) -> float:
    """0 falls to -1 along half a cosine in the first epochs, counted from 1."""
    if epoch >= length:
        return -1.0
    return -(math.sin(math.pi * epoch / length / 2) ** 2)
