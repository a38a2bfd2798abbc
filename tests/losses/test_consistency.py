from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.losses.consistency import Consistency, sigmoid_rampup
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import consistency as reference

# The paper divides by the number of classes, so further ones lower the value.
SOFT = [check for check in response.SOFT if check is not response.impossible_classes]


@pytest.mark.parametrize("check", [*properties.ALL, *SOFT, properties.batch_size])
def test_properties(check: properties.Check) -> None:
    check(partial(Consistency, weight=1.0), random_case())


def test_agrees_with_reference() -> None:
    def expected(case: Case) -> float:
        return reference.consistency(*logits_of(case))

    properties.agrees(Consistency, expected)


def test_known_value() -> None:
    value = properties.value_of(Consistency, example())
    assert value.item() == pytest.approx(0.020237, abs=1e-6)


def test_by_hand() -> None:
    # q = (1/2, 1/2), p = (1/4, 3/4): ((1/4)^2 + (1/4)^2) / 2.
    case = case_of([[0, 0]], [[0, math.log(3)]])
    value, (gradient,) = properties.gradients_of(Consistency, case)
    assert value.item() == pytest.approx(1 / 16)
    # sum_k (q_k - p_k) dq_k, with dq_0 = q_0 q_1 = 1/4 = -dq_1.
    assert gradient.tolist() == [pytest.approx([1 / 8, -1 / 8])]


def test_rampup() -> None:
    loss = Consistency(weight=2.0, rampup=5, start=1)
    weights = [loss.weight_at(epoch) for epoch in range(8)]
    assert weights == pytest.approx(
        [0.0, *(2 * reference.ramp(epoch, 5) for epoch in range(7))]
    )
    assert reference.ramp(0, 5) == pytest.approx(0.0067, abs=1e-4)
    assert reference.ramp(1, 5) == pytest.approx(0.0408, abs=1e-4)
    assert sigmoid_rampup(0, 0) == 1.0


def test_defaults() -> None:
    loss = Consistency()
    assert (loss.weight, loss.rampup) == (100.0, 5)


@pytest.mark.parametrize("rampup", [-1, 1.5, True, "5"])
def test_bad_rampup(rampup: Any) -> None:
    with pytest.raises(UserError, match="rampup must be a whole number"):
        Consistency(rampup=rampup)
