from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.nkd import NKD
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import nkd as reference

CHECKS = [
    *properties.ALL,
    *response.LABELLED,
    response.mixes_labels,
    response.impossible_classes,
    properties.batch_size,
]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(NKD, temperature=temperature), random_case())


@pytest.mark.parametrize("gamma", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_agrees_with_reference(gamma: float, temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.nkd(
            *logits_of(case), case.batch.target.tolist(), gamma, temperature
        )

    properties.agrees(partial(NKD, gamma, temperature), expected)


def test_known_values() -> None:
    own = properties.value_of(partial(NKD, 0.0), example()).item()
    both = properties.value_of(NKD, example()).item()
    assert own == pytest.approx(0.307546, abs=1e-6)
    assert both == pytest.approx(1.874026, abs=1e-6)
    assert (both - own) / 1.5 == pytest.approx(1.044320, abs=1e-6)


def test_by_hand() -> None:
    # The student is uniform over three classes, the teacher has (2, 1, 1) / 4:
    # 1/2 ln 3, and of the others the cross-entropy of (1/2, 1/2) with itself, ln 2.
    case = case_of([[0, 0, 0]], [[math.log(2), 0, 0]], [0])
    value = properties.value_of(partial(NKD, 2.0, 1.0), case)
    assert value.item() == pytest.approx(math.log(3) / 2 + 2 * math.log(2))
    # At T = 3 the others' cross-entropy is the same, times 9.
    value = properties.value_of(partial(NKD, 2.0, 3.0), case)
    assert value.item() == pytest.approx(math.log(3) / 2 + 18 * math.log(2))


def test_two_classes_have_no_others() -> None:
    case = random_case(classes=2)
    value = properties.value_of(partial(NKD, 0.0), case)
    torch.testing.assert_close(properties.value_of(NKD, case), value)


def test_the_minimum_agrees_on_the_others_and_is_sure_of_the_label() -> None:
    case = random_case()
    same = replace(case, student=case.teacher)
    _, (gradient,) = properties.gradients_of(NKD, same)
    own = torch.nn.functional.one_hot(case.batch.target, 5).bool()
    # At the teacher only the first term pulls: p_t (q - y) / N.
    p = case.teacher.log_probs().exp()
    expected = p[own][:, None] * (p - own.double()) / 6
    torch.testing.assert_close(gradient, expected)
    raised = torch.where(own, case.teacher.logits + 50, case.teacher.logits)
    best = replace(case, student=Output(raised))
    value, (gradient,) = properties.gradients_of(NKD, best)
    assert gradient.abs().max() < 1e-9
    assert value < properties.value_of(NKD, same)
    for step in (0.1, 1.0, 10.0):
        student = properties.change(best.student, partial(properties.jitter, step))
        assert properties.value_of(NKD, replace(best, student=student)) > value
    assert not NKD.minimum_at_teacher


@pytest.mark.parametrize("value", [-0.1, math.nan, "2", True])
def test_bad_gamma(value: Any) -> None:
    with pytest.raises(
        UserError, match="NKD: gamma must be a finite number of at least 0"
    ):
        NKD(gamma=value)


def test_bad_temperature() -> None:
    with pytest.raises(UserError, match="NKD: temperature must be a finite number"):
        NKD(temperature=0)


def test_defaults() -> None:
    loss = NKD()
    assert loss.gamma == 1.5
    assert loss.temperature == 1.0
