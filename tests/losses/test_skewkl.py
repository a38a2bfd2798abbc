from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.reversekl import ReverseKL
from kd_lightning.losses.skewkl import SkewKL
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import skewkl as reference

FORMS = [(0.1, False), (0.1, True), (0.9, False), (0.5, True)]


@pytest.mark.parametrize(("alpha", "reverse"), FORMS)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, alpha: float, reverse: bool) -> None:
    check(partial(SkewKL, alpha, reverse), random_case())


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(alpha: float, temperature: float) -> None:
    factor = temperature**2

    def forward(case: Case) -> float:
        return factor * reference.skew_kl(*logits_of(case), alpha, temperature)

    def backward(case: Case) -> float:
        return factor * reference.skew_reverse_kl(*logits_of(case), alpha, temperature)

    make = partial(SkewKL, alpha, temperature=temperature)
    properties.agrees(make, forward)
    properties.agrees(partial(make, reverse=True), backward)


@pytest.mark.parametrize(("reverse", "expected"), [(False, 0.126885), (True, 0.146629)])
def test_known_values(reverse: bool, expected: float) -> None:
    value = properties.value_of(partial(SkewKL, 0.1, reverse), example())
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # p = (1/4, 3/4), q = (1/2, 1/2), alpha = 1/2: the mixture is (3/8, 5/8).
    case = case_of([[0, 0]], [[0, math.log(3)]])
    value = properties.value_of(partial(SkewKL, 0.5), case)
    expected = math.log(2 / 3) / 4 + 3 * math.log(6 / 5) / 4
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize(("reverse", "limit"), [(False, KD), (True, ReverseKL)])
def test_without_skew_it_is_a_kl(reverse: bool, limit: type[KD | ReverseKL]) -> None:
    case = example()
    expected = properties.value_of(partial(limit, 1.0), case).item()
    value = properties.value_of(partial(SkewKL, 1e-7, reverse), case)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_is_bounded_where_the_networks_disagree(reverse: bool) -> None:
    case = case_of([[1e4, 0]], [[0, 1e4]])
    value = properties.value_of(partial(SkewKL, 0.1, reverse), case)
    assert value.item() == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan, "2", True])
def test_bad_alpha(alpha: Any) -> None:
    with pytest.raises(UserError, match=r"SkewKL: alpha must be a number in \(0, 1\)"):
        SkewKL(alpha)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "SkewKL: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        SkewKL(temperature=temperature)


def test_reads_the_rest_of_a_top_k_cache() -> None:
    loss = SkewKL(temperature=2.0)
    assert not loss.exact_logits
    assert loss.teacher_temperatures == (2.0,)
