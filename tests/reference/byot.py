"""Zhang et al. 2019: what one exit costs, term by term."""

from __future__ import annotations

import math

from tests.reference.kd import Rows, kd, softened


def hard(logits: Rows, labels: list[int]) -> float:
    """-log q_y, mean over all samples; an unlabelled one costs nothing."""
    costs = []
    for z, label in zip(logits, labels, strict=True):
        if label >= 0:
            costs.append(-math.log(softened(z, 1.0)[label]))
    return math.fsum(costs) / len(logits)


def hint(features: Rows, last: Rows) -> float:
    """The sum of squared differences where one of both is positive, mean over samples."""
    total = 0.0
    for own, target in zip(features, last, strict=True):
        for f, g in zip(own, target, strict=True):
            if f > 0 or g > 0:
                total += (f - g) ** 2
    return total / len(features)


def cost(
    exit_: tuple[Rows, Rows],
    network: tuple[Rows, Rows],
    labels: list[int],
    options: tuple[float, float, float],
) -> float:
    """(1 - a) CE + a T^2 KL + b hint.

    Args:
        exit_: logits and features of the exit.
        network: logits and last features of the network.
        labels: of the samples.
        options: a, b and T.
    """
    a, b, t = options
    soft = kd(exit_[0], network[0], t)
    return (1 - a) * hard(exit_[0], labels) + a * soft + b * hint(exit_[1], network[1])
