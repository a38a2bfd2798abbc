"""Yuan et al. 2020: KL from a virtual teacher, in the paper's and in the authors' form."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, softened
from tests.reference.response import kl


def tfkd(
    student: Rows, target: list[int], paper: bool, temperature: float, correct: float
) -> float:
    """Mean over the labelled rows."""
    values = []
    for z, label in zip(student, target, strict=True):
        if label == -100:
            continue
        others = (1 - correct) / (len(z) - 1)
        u = [correct if k == label else others for k in range(len(z))]
        if paper:
            powers = [x ** (1 / temperature) for x in u]
            tempered = [x / math.fsum(powers) for x in powers]
            values.append(kl(tempered, softened(z, temperature)))
        else:
            values.append(kl(softened(u, temperature), softened(z, 1.0)))
    return math.fsum(values) / len(values)
