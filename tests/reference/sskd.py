"""Self-supervision knowledge distillation (Xu et al. 2020), with plain loops over images and views."""

from __future__ import annotations

import math

from tests.reference.kd import soft_target_loss, softened


def linear(x: list[float], weight: list[list[float]], bias: list[float]) -> list[float]:
    pairs = zip(weight, bias, strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in pairs]


def cosine(x: list[float], y: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(x, y, strict=True))
    return product / (math.hypot(*x) * math.hypot(*y))


def cosine_rows(
    originals: list[list[float]], transformed: list[list[list[float]]]
) -> list[list[float]]:
    """A row per transformed view of each image, view by view, of its cosines with all originals."""
    return [
        [cosine(shown, original) for original in originals]
        for view in transformed
        for shown in view
    ]


def contrast(rows: list[list[float]], images: int) -> float:
    """The first stage: the mean negative log-probability of each row's own image."""
    costs = []
    for at, row in enumerate(rows):
        costs.append(-math.log(softened(row, 1.0)[at % images]))
    return sum(costs) / len(costs)


def kept(
    rows: list[list[float]], truth: list[int], share: float, temperature: float
) -> list[int]:
    """The rows with the best rank of the truth: all right ones, and a share of the wrong ones."""
    keys = []
    for at, (row, true) in enumerate(zip(rows, truth, strict=True)):
        rank = sum(value > row[true] for value in row)
        keys.append((rank, -softened(row, temperature)[true], at))
    right = sum(rank == 0 for rank, _, _ in keys)
    wrong = int(share * (len(rows) - right))
    return [at for _, _, at in sorted(keys)[: right + wrong]]


def divergence(
    student: list[list[float]],
    teacher: list[list[float]],
    rows: list[int],
    temperature: float,
) -> float:
    """T^2 KL from the teacher, mean over some rows; zero if there is none."""
    if not rows:
        return 0.0
    targets = [softened(teacher[at], temperature) for at in rows]
    return soft_target_loss([student[at] for at in rows], targets, temperature)
