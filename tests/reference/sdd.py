"""Wei et al. 2024: the logits of each cell of several grids, weighted by where the teacher is right."""

from __future__ import annotations

import math
from typing import Any

from tests.reference.at import averaged_down
from tests.reference.dkd import parts
from tests.reference.kd import Rows, kd
from tests.reference.vid import times


def cells(maps: list[Any], weight: Rows, bias: list[float], grids: list[int]) -> Rows:
    """The logits of each cell of one sample, the whole image first."""
    found = []
    for grid in grids:
        means = [averaged_down(channel, grid, grid) for channel in maps]
        for at in range(grid * grid):
            row, column = divmod(at, grid)
            feature = [mean[row][column] for mean in means]
            scores = times(weight, feature)
            found.append([score + b for score, b in zip(scores, bias, strict=True)])
    return found


def decides(logits: list[float], label: int) -> bool:
    return logits.index(max(logits)) == label


def sdd(
    student: list[Rows],
    teacher: list[Rows],
    target: list[int],
    temperature: float,
    dkd: tuple[float, float] | None = None,
) -> float:
    """From the logits of the cells of each sample; `dkd` holds alpha and beta."""
    costs = []
    for own, other, label in zip(student, teacher, target, strict=True):
        if label == -100:
            continue
        total = 0.0
        for z, v in zip(own, other, strict=True):
            if dkd is None:
                cost = kd([z], [v], temperature)
            else:
                tckd, nckd = parts(z, v, label, temperature)
                cost = temperature**2 * (dkd[0] * tckd + dkd[1] * nckd)
            same = decides(v, label) == decides(other[0], label)
            total += cost if same else 2 * cost
        costs.append(total / len(own))
    return math.fsum(costs) / len(costs)
