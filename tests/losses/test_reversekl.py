from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.reversekl import ReverseKL
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import reversekl as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(ReverseKL, temperature=temperature), random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    check(ReverseKL, replace(random_case(), teacher=response.random_ensemble()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.reverse_kl(*logits_of(case), temperature)

    properties.agrees(partial(ReverseKL, temperature=temperature), expected)


def test_known_value() -> None:
    value = properties.value_of(partial(ReverseKL, 1.0), example())
    assert value.item() == pytest.approx(0.203197, abs=1e-6)


def test_by_hand() -> None:
    # T = 2: the teacher's (0, 2 ln 3) / 2 is p = (1/4, 3/4), the student's (0, 0) is q = (1/2, 1/2).
    # 4 (1/2 ln 2 + 1/2 ln(2/3)) = 2 ln(4/3).
    case = case_of([[0, 0]], [[0, 2 * math.log(3)]])
    value, (gradient,) = properties.gradients_of(partial(ReverseKL, 2.0), case)
    divergence = math.log(4 / 3) / 2
    assert value.item() == pytest.approx(4 * divergence)
    # T q_k (ln(q_k / p_k) - KL).
    expected = [math.log(2) - divergence, math.log(2 / 3) - divergence]
    assert gradient.tolist() == [pytest.approx(expected)]


def test_classes_that_the_teacher_rules_out_are_left_out() -> None:
    """The student is compared given that it is one of the others, as if there were no more."""
    case = random_case()
    teacher = case.teacher.logits.clone()
    teacher[:, [1, 3]] = -math.inf
    ruled = replace(case, teacher=replace(case.teacher, logits=teacher))
    possible = properties.both(case, lambda logits: logits[:, [0, 2, 4]])
    value, (gradient,) = properties.gradients_of(ReverseKL, ruled)
    expected, (expected_gradient,) = properties.gradients_of(ReverseKL, possible)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, [0, 2, 4]], expected_gradient)
    assert gradient[:, [1, 3]].abs().max() < 1e-12


def test_avoids_what_the_teacher_finds_unlikely() -> None:
    """Covering one of the teacher's two classes costs ln 2; probability elsewhere costs much more."""
    teacher = [[0.0, 0.0, -50.0]]
    one = properties.value_of(
        partial(ReverseKL, 1.0), case_of([[50.0, 0.0, 0.0]], teacher)
    )
    elsewhere = properties.value_of(
        partial(ReverseKL, 1.0), case_of([[0.0, 0.0, 0.0]], teacher)
    )
    assert one.item() == pytest.approx(math.log(2))
    assert elsewhere > 10


def test_reads_the_rest_of_a_top_k_cache() -> None:
    loss = ReverseKL(temperature=2.0)
    assert not loss.exact_logits
    assert loss.teacher_temperatures == (2.0,)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "ReverseKL: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        ReverseKL(temperature=temperature)


def test_defaults() -> None:
    loss = ReverseKL()
    assert loss.temperature == 4.0
