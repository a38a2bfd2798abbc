from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.gjsd import GJSD
from kd_lightning.losses.kd import KD
from kd_lightning.losses.reversekl import ReverseKL
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import gjsd as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)
BETAS = (0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(GJSD, temperature=temperature), random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    check(GJSD, replace(random_case(), teacher=response.random_ensemble()))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float, beta: float) -> None:
    factor = temperature**2 / (beta * (1 - beta))

    def expected(case: Case) -> float:
        return factor * reference.gjsd(*logits_of(case), beta, temperature)

    properties.agrees(partial(GJSD, beta, temperature), expected)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties_of_the_family(check: properties.Check, beta: float) -> None:
    check(partial(GJSD, beta), random_case())


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.5, 0.041399), (0.1, 0.013976), (0.9, 0.017206)]
)
def test_known_values(beta: float, expected: float) -> None:
    make = partial(GJSD, beta, 1.0)
    value = properties.value_of(make, example()).item() * beta * (1 - beta)
    assert value == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # T = 2, p = (1/4, 3/4), q = (1/2, 1/2), m = (3/8, 5/8); the factor is 4 / (1/4) = 16.
    case = case_of([[0, 0]], [[0, 2 * math.log(3)]])
    from_teacher = math.log(2 / 3) / 4 + 3 * math.log(6 / 5) / 4
    from_student = math.log(4 / 3) / 2 + math.log(4 / 5) / 2
    value = properties.value_of(partial(GJSD, 0.5, 2.0), case)
    assert value.item() == pytest.approx(16 * (from_teacher + from_student) / 2)


def test_the_ends_are_both_kls_without_a_jump() -> None:
    case = example()
    ends = {0.0: KD(1.0), 1.0: ReverseKL(1.0)}
    for end, loss in ends.items():
        expected = loss(case.student, case.teacher, case.batch)
        assert torch.equal(properties.value_of(partial(GJSD, end, 1.0), case), expected)
        for near in (1e-3, 1e-6):
            beta = abs(end - near)
            value = properties.value_of(partial(GJSD, beta, 1.0), case)
            assert value.item() == pytest.approx(expected.item(), rel=near)
    known = {0.001: 0.154227, 0.999: 0.203054}
    for beta, expected_value in known.items():
        value = properties.value_of(partial(GJSD, beta, 1.0), case)
        assert value.item() == pytest.approx(expected_value, abs=1e-6)


def test_is_precise_near_the_ends() -> None:
    """In single precision too: logarithms of the mixture itself would leave no digit."""
    case = example()
    for beta in (1e-4, 1 - 1e-4):
        exact = properties.value_of(partial(GJSD, beta, 1.0), case).item()
        single = properties.cast(case, torch.float32)
        value = properties.value_of(partial(GJSD, beta, 1.0), single).item()
        assert value == pytest.approx(exact, rel=1e-4)


def test_the_curvature_at_the_teacher_is_that_of_kd() -> None:
    case = random_case()
    near = replace(
        case, student=properties.change(case.teacher, partial(properties.jitter, 1e-3))
    )
    expected = properties.value_of(KD, near).item()
    for beta in BETAS:
        assert properties.value_of(partial(GJSD, beta), near).item() == pytest.approx(
            expected, rel=1e-2
        )


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan, "2", True])
def test_bad_beta(beta: Any) -> None:
    with pytest.raises(UserError, match=r"GJSD: beta must be a number in \[0, 1\]"):
        GJSD(beta)


def test_reads_the_rest_of_a_top_k_cache() -> None:
    loss = GJSD(temperature=2.0)
    assert not loss.exact_logits
    assert loss.teacher_temperatures == (2.0,)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "GJSD: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        GJSD(temperature=temperature)


def test_defaults() -> None:
    loss = GJSD()
    assert loss.beta == 0.5
    assert loss.temperature == 4.0
