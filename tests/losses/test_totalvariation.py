from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.losses.totalvariation import TotalVariation
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import totalvariation as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(TotalVariation, temperature=temperature), random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    check(TotalVariation, replace(random_case(), teacher=response.random_ensemble()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.total_variation(*logits_of(case), temperature)

    properties.agrees(partial(TotalVariation, temperature=temperature), expected)


def test_known_value() -> None:
    value = properties.value_of(TotalVariation, example())
    assert value.item() == pytest.approx(0.178708, abs=1e-6)


def test_by_hand() -> None:
    # p = (1/4, 3/4), q = (1/2, 1/2); without a factor of the temperature.
    case = case_of([[0, 0]], [[0, 2 * math.log(3)]])
    value, (gradient,) = properties.gradients_of(partial(TotalVariation, 2.0), case)
    assert value.item() == pytest.approx(1 / 4)
    # 1/2 sum_k sign(q_k - p_k) dq_k, with dq_0 = q_0 q_1 / T = 1/8 = -dq_1.
    assert gradient.tolist() == [pytest.approx([1 / 8, -1 / 8])]


def test_is_at_most_one() -> None:
    case = case_of([[1e3, 0, 0]], [[0, 1e3, 0]])
    assert properties.value_of(TotalVariation, case).item() == pytest.approx(1.0)


def test_reads_the_rest_of_a_top_k_cache() -> None:
    loss = TotalVariation(temperature=2.0)
    assert not loss.exact_logits
    assert loss.teacher_temperatures == (2.0,)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "TotalVariation: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        TotalVariation(temperature=temperature)


def test_defaults() -> None:
    loss = TotalVariation()
    assert loss.temperature == 1.0
