from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.tfkd import TfKD
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import tfkd as reference

LABEL_CHECKS = [
    *properties.ALL,
    response.class_order,
    response.one_sample,
    response.duplication,
    response.ignores_unlabelled_rows,
    response.mixes_labels,
    properties.batch_size,
]


@pytest.mark.parametrize("convention", ["paper", "code"])
@pytest.mark.parametrize("check", LABEL_CHECKS)
def test_properties(check: properties.Check, convention: Any) -> None:
    check(partial(TfKD, convention), random_case())


@pytest.mark.parametrize("convention", ["paper", "code"])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("correct", [0.5, 0.99])
def test_agrees_with_reference(
    convention: Any, temperature: float, correct: float
) -> None:
    def expected(case: Case) -> float:
        target = case.batch.target.tolist()
        paper = convention == "paper"
        return reference.tfkd(logits_of(case)[0], target, paper, temperature, correct)

    properties.agrees(partial(TfKD, convention, temperature, correct), expected)


def test_known_value() -> None:
    value = properties.value_of(partial(TfKD, "code"), example())
    assert value.item() == pytest.approx(0.292717, abs=1e-6)


def test_by_hand() -> None:
    # Two classes, T = 2, u = (0.9, 0.1): its roots have the ratio 3, so u_T = (3/4, 1/4).
    # The student is indifferent: 3/4 ln(3/2) + 1/4 ln(1/2) = 1/4 ln(27/16), without T^2.
    case = case_of([[0, 0]], [[0, 0]], [0])
    value, (gradient,) = properties.gradients_of(partial(TfKD, "paper", 2.0, 0.9), case)
    assert value.item() == pytest.approx(math.log(27 / 16) / 4)
    # (q - u_T) / T.
    assert gradient.tolist() == [pytest.approx([-1 / 8, 1 / 8])]


def test_the_code_tempers_probabilities_nearly_to_uniform() -> None:
    u = torch.tensor([0.99, 0.005, 0.005], dtype=torch.float64)
    expected = torch.tensor([0.3444, 0.3278, 0.3278], dtype=torch.float64)
    torch.testing.assert_close(torch.softmax(u / 20, 0), expected, rtol=0, atol=5e-5)
    best = case_of([(u / 20).tolist()], [[0, 0, 0]], [0])
    properties.minimum(partial(TfKD, "code"), best)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_minimum_is_the_virtual_teacher(temperature: float) -> None:
    u = [math.log(0.99), math.log(0.005), math.log(0.005)]
    properties.minimum(
        partial(TfKD, "paper", temperature), case_of([u], [[0, 0, 0]], [0])
    )
    assert not TfKD.minimum_at_teacher
    assert not TfKD.uses_teacher


def test_a_class_that_the_student_rules_out_costs_its_probability() -> None:
    """More classes change the virtual teacher: the declared exception to widening."""
    case = random_case()
    wide = properties.both(case, lambda x: torch.cat([x, torch.full_like(x, -1e4)], 1))
    assert properties.value_of(TfKD, wide) > properties.value_of(TfKD, case)


def test_needs_no_teacher() -> None:
    case = random_case()
    assert torch.equal(
        TfKD()(case.student, None, case.batch), properties.value_of(TfKD, case)
    )


@pytest.mark.parametrize("correct", [0, 1, math.nan, "0.5", True])
def test_bad_probability(correct: Any) -> None:
    with pytest.raises(UserError, match=r"TfKD: correct must be a number in \(0, 1\)"):
        TfKD(correct=correct)


def test_bad_convention() -> None:
    with pytest.raises(
        UserError, match="TfKD: convention must be 'paper' or 'code', got 'self'"
    ):
        TfKD(convention="self")  # type: ignore[arg-type]


def test_bad_temperature() -> None:
    with pytest.raises(UserError, match="TfKD: temperature must be a finite number"):
        TfKD(temperature=0)


def test_defaults() -> None:
    loss = TfKD()
    assert loss.convention == "paper"
    assert loss.temperature == 20.0
    assert loss.correct == 0.99
