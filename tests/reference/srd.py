"""The log-sum distance of standardized features, from Miles and Mikolajczyk 2024."""

from __future__ import annotations

import math

from tests.reference.pad import batch_normalized
from tests.reference.vid import Matrix


def distance(student: Matrix, teacher: Matrix) -> float:
    ours, theirs = batch_normalized(student, 1e-4), batch_normalized(teacher, 1e-4)
    powers = [
        abs(a - b) ** 4
        for one, two in zip(ours, theirs, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return math.log(math.fsum(powers))
