"""The distillation loss of a teacher that knows only its k largest logits."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, soft_target_loss, softened


def merged(
    student: Rows, teacher: Rows, k: int, temperature: float
) -> tuple[Rows, Rows]:
    """Probabilities of both networks for the teacher's k largest classes and for all others."""
    predictions: Rows = []
    targets: Rows = []
    for z, v in zip(student, teacher, strict=True):
        largest = sorted(range(len(v)), key=lambda c: v[c], reverse=True)[:k]
        for row, merged_rows in ((z, predictions), (v, targets)):
            p = softened(row, temperature)
            others = [p[c] for c in range(len(p)) if c not in largest]
            merged_rows.append([*(p[c] for c in largest), math.fsum(others)])
    return predictions, targets


def kd(student: Rows, teacher: Rows, k: int, temperature: float) -> float:
    """T^2 KL over k + 1 events, mean over rows."""
    predictions, targets = merged(student, teacher, k, temperature)
    scaled = [[temperature * math.log(q) for q in row] for row in predictions]
    return soft_target_loss(scaled, targets, temperature)
