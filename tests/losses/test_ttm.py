from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.ttm import TTM
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import ttm as reference


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, weighted: bool) -> None:
    check(partial(TTM, 0.5, weighted), random_case())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
def test_agrees_with_reference(gamma: float, weighted: bool) -> None:
    def expected(case: Case) -> float:
        return reference.ttm(*logits_of(case), gamma, weighted)

    properties.agrees(partial(TTM, gamma, weighted), expected)


@pytest.mark.parametrize(
    ("weighted", "expected"), [(False, 0.146235), (True, 0.227724)]
)
def test_known_values(weighted: bool, expected: float) -> None:
    value = properties.value_of(partial(TTM, 0.5, weighted), example())
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # p = (0.9, 0.1) to the power 1/2 is (3, 1) / sqrt 10: normalized (3/4, 1/4), U = 4 / sqrt 10.
    case = case_of([[0, 0]], [[math.log(9), 0]])
    divergence = math.log(27 / 16) / 4
    value, (gradient,) = properties.gradients_of(partial(TTM, 0.5), case)
    assert value.item() == pytest.approx(divergence)
    assert gradient.tolist() == [pytest.approx([-1 / 4, 1 / 4])]
    weighted = properties.value_of(partial(TTM, 0.5, True), case)
    assert weighted.item() == pytest.approx(4 / math.sqrt(10) * divergence)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_the_minimum_has_gamma_times_the_teachers_logits(
    gamma: float, weighted: bool
) -> None:
    case = random_case()
    best = replace(case, student=Output(gamma * case.teacher.logits + 3))
    properties.minimum(partial(TTM, gamma, weighted), best)
    same = replace(case, student=case.teacher)
    assert properties.value_of(partial(TTM, gamma, weighted), same) > 1e-2
    assert not TTM.minimum_at_teacher


def test_an_exponent_of_one_is_kd() -> None:
    case = random_case()
    expected = properties.value_of(partial(KD, 1.0), case)
    torch.testing.assert_close(properties.value_of(partial(TTM, 1.0), case), expected)
    # U is then 1.
    torch.testing.assert_close(
        properties.value_of(partial(TTM, 1.0, True), case), expected
    )


def test_both_shipped_methods() -> None:
    plain = response.shipped("ttm")["ttm"]
    weighted = response.shipped("ttm_weighted")["ttm"]
    assert isinstance(plain, TTM)
    assert isinstance(weighted, TTM)
    assert (plain.gamma, plain.weight, plain.weighted) == (0.1, 45.0, False)
    assert (weighted.gamma, weighted.weight, weighted.weighted) == (0.2, 4.0, True)


@pytest.mark.parametrize("gamma", [0, -1, math.nan, "2", True])
def test_bad_gamma(gamma: Any) -> None:
    with pytest.raises(
        UserError, match="TTM: gamma must be a finite number greater than 0"
    ):
        TTM(gamma)


def test_defaults() -> None:
    loss = TTM()
    assert loss.gamma == 0.1
    assert not loss.weighted
