"""Yun et al. 2020, equation 2: the prediction for another sample of the class is the target."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, kd


def cskd(
    student: Rows, companions: Rows, target: list[int], temperature: float
) -> float:
    """T^2 KL(p(x') | p(x)), mean over the samples with a label."""
    costs = []
    for z, other, label in zip(student, companions, target, strict=True):
        if label != -100:
            costs.append(kd([z], [other], temperature))
    return math.fsum(costs) / len(costs)
