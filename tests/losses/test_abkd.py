from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.losses.abkd import ABKD
from kd_lightning.losses.kd import KD
from kd_lightning.losses.reversekl import ReverseKL
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import abkd as reference

PAIRS = [(0.2, 0.7), (0.5, 0.5), (1.0, 0.3), (1.5, 1.0)]


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, alpha: float, beta: float) -> None:
    check(partial(ABKD, alpha, beta), random_case())


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(alpha: float, beta: float, temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.abkd(*logits_of(case), alpha, beta, temperature)

    properties.agrees(partial(ABKD, alpha, beta, temperature), expected)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(0.2, 0.7, 0.225327), (0.5, 0.5, 0.17176)]
)
def test_known_values(alpha: float, beta: float, expected: float) -> None:
    value = properties.value_of(partial(ABKD, alpha, beta), example())
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # a = b = 1 is half the squared distance: p = (1/4, 3/4), q = (1/2, 1/2).
    case = case_of([[0, 0]], [[0, math.log(3)]])
    value, (gradient,) = properties.gradients_of(partial(ABKD, 1.0, 1.0), case)
    assert value.item() == pytest.approx(1 / 16)
    # sum_k (q_k - p_k) dq_k, with dq_0 = 1/4 = -dq_1.
    assert gradient.tolist() == [pytest.approx([1 / 8, -1 / 8])]


def test_the_ends_are_both_kls() -> None:
    case = example()
    near = 1e-6
    forward_kl = properties.value_of(partial(KD, 1.0), case).item()
    value = properties.value_of(partial(ABKD, 1.0, near), case)
    assert value.item() == pytest.approx(forward_kl, rel=1e-4)
    backward_kl = properties.value_of(partial(ReverseKL, 1.0), case).item()
    value = properties.value_of(partial(ABKD, near, 1.0), case)
    assert value.item() == pytest.approx(backward_kl, rel=1e-4)


@pytest.mark.parametrize("name", ["alpha", "beta", "temperature"])
@pytest.mark.parametrize("value", [0, -1, math.nan, "2", True])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"ABKD: {name} must be a finite number greater than 0"
    ):
        ABKD(**{name: value})


def test_defaults() -> None:
    loss = ABKD()
    assert loss.alpha == 0.2
    assert loss.beta == 0.7
    assert loss.temperature == 1.0
