from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.jeffreys import Jeffreys
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import jeffreys as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(Jeffreys, temperature=temperature), random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    check(Jeffreys, replace(random_case(), teacher=response.random_ensemble()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.jeffreys(*logits_of(case), temperature)

    properties.agrees(partial(Jeffreys, temperature=temperature), expected)


def test_known_value() -> None:
    """Half of the sum 0.357416."""
    value = properties.value_of(partial(Jeffreys, 1.0), example())
    assert value.item() == pytest.approx(0.178708, abs=1e-6)


def test_by_hand() -> None:
    # T = 2, p = (1/4, 3/4), q = (1/2, 1/2): 4 / 2 ((-1/4) ln(1/2) + 1/4 ln(3/2)) = 1/2 ln 3.
    case = case_of([[0, 0]], [[0, 2 * math.log(3)]])
    value = properties.value_of(partial(Jeffreys, 2.0), case)
    assert value.item() == pytest.approx(math.log(3) / 2)


def test_treats_both_alike() -> None:
    case = random_case()
    swapped = Case(case.teacher, case.student, case.batch)
    value = properties.value_of(Jeffreys, case)
    torch.testing.assert_close(properties.value_of(Jeffreys, swapped), value)


def test_reads_the_rest_of_a_top_k_cache() -> None:
    loss = Jeffreys(temperature=2.0)
    assert not loss.exact_logits
    assert loss.teacher_temperatures == (2.0,)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "Jeffreys: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        Jeffreys(temperature=temperature)


def test_defaults() -> None:
    loss = Jeffreys()
    assert loss.temperature == 4.0
