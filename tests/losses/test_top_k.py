"""Divergences over the classes that a top-k teacher knows, and one for all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from kd_lightning.losses import (
    ABKD,
    GJSD,
    KD,
    DistillLoss,
    Jeffreys,
    ReverseKL,
    SkewKL,
    TotalVariation,
)
from kd_lightning.types import Output
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.test_sparse import sparse

TEMPERATURE = 2.0
CLASSES = 9

Divergence = Callable[[list[float], list[float]], float]
"""From the teacher's and the student's probabilities, as plain numbers."""


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixture(p: list[float], q: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def skew(p: list[float], q: list[float]) -> float:
    return kl(p, mixture(p, q, 0.1))


def jensen_shannon(p: list[float], q: list[float]) -> float:
    middle = mixture(p, q, 0.3)
    return (0.3 * kl(p, middle) + 0.7 * kl(q, middle)) / 0.21


def jeffreys(p: list[float], q: list[float]) -> float:
    return (kl(p, q) + kl(q, p)) / 2


def total_variation(p: list[float], q: list[float]) -> float:
    # This loss has no factor of the temperature.
    distance = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    return distance / TEMPERATURE**2


LOSSES: dict[str, tuple[Callable[..., DistillLoss], Divergence]] = {
    "KD": (KD, kl),
    "ReverseKL": (ReverseKL, lambda p, q: kl(q, p)),
    "GJSD": (partial(GJSD, 0.3), jensen_shannon),
    "SkewKL": (SkewKL, skew),
    "Jeffreys": (Jeffreys, jeffreys),
    "TotalVariation": (TotalVariation, total_variation),
}


def cells(logits: torch.Tensor, top: list[int]) -> list[float]:
    """The probabilities of some classes, and the sum of all others."""
    powers = [math.exp(x / TEMPERATURE) for x in logits.tolist()]
    total = sum(powers)
    stored = [powers[number] / total for number in top]
    others = [powers[n] / total for n in range(len(powers)) if n not in top]
    return [*stored, sum(others)] if others else stored


def by_hand(case: Case, k: int, divergence: Divergence) -> float:
    values = []
    for z, v in zip(case.student.logits, case.teacher.logits, strict=True):
        top = v.topk(k).indices.tolist()
        values.append(divergence(cells(v, top), cells(z, top)))
    return TEMPERATURE**2 * sum(values) / len(values)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 4, CLASSES - 1])
def test_the_loss_is_the_divergence_over_the_cells(name: str, k: int) -> None:
    make, divergence = LOSSES[name]
    make = partial(make, temperature=TEMPERATURE)
    case = random_case(classes=CLASSES, scale=2.0)
    teacher = sparse(case.teacher.logits, k, (TEMPERATURE,))
    value = properties.value_of(make, Case(case.student, teacher, case.batch)).item()
    assert value == pytest.approx(by_hand(case, k, divergence), rel=1e-9)
    # Merging classes loses information, unless each cell is one class.
    full = properties.value_of(make, case).item()
    if k == CLASSES - 1:
        assert value == pytest.approx(full, rel=1e-9)
    else:
        assert 0 < value < full


@pytest.mark.parametrize("name", LOSSES)
def test_an_equal_student_has_neither_loss_nor_gradient(name: str) -> None:
    make = partial(LOSSES[name][0], temperature=TEMPERATURE)
    case = random_case(classes=CLASSES, scale=2.0)
    teacher = sparse(case.teacher.logits, 3, (TEMPERATURE,))
    equal = Case(Output(case.teacher.logits.clone()), teacher, case.batch)
    value, gradients = properties.gradients_of(make, equal)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-9 for gradient in gradients)


def test_abkd_refuses_cells() -> None:
    """Powers of probabilities do not add up: merged classes mean something else."""
    assert ABKD.exact_logits
