"""Masked generative distillation, from Yang et al. 2022, on given masks."""

from __future__ import annotations

from tests.reference.at import Maps
from tests.reference.fitnets import Kernel, convolved, rectified


def generated(
    features: Maps, mask: Maps, weights: list[tuple[Kernel, list[float]]]
) -> Maps:
    """Two 3x3 convolutions with a ReLU between them, on the map times its mask."""
    masked = [
        [
            [value * m for value, m in zip(line, mask_line, strict=True)]
            for line, mask_line in zip(channel, mask_channel, strict=True)
        ]
        for channel, mask_channel in zip(features, mask, strict=True)
    ]
    (first, first_bias), (second, second_bias) = weights
    hidden = rectified(convolved(masked, first, first_bias, 1, 1))
    return convolved(hidden, second, second_bias, 1, 1)


def distance(student: list[Maps], teacher: list[Maps]) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for own, target in zip(s, t, strict=True):
            for own_line, target_line in zip(own, target, strict=True):
                total += sum(
                    (a - b) ** 2 for a, b in zip(own_line, target_line, strict=True)
                )
    return total / len(student)
