from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.dkd import decoupled_kl
from kd_lightning.losses.rld import RLD, confidence_kl, masked_kl
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import rld as reference

CHECKS = [
    *properties.ALL,
    *response.LABELLED,
    response.mixes_labels,
    response.impossible_classes,
    properties.batch_size,
]


def right(case: Case) -> Case:
    """The same logits with labels on which the teacher is right."""
    target = case.teacher.logits.argmax(1)
    return replace(case, batch=replace(case.batch, target=target))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(RLD, temperature=temperature), right(random_case()))


def test_properties_where_the_teacher_is_wrong() -> None:
    case = random_case()
    checks = (
        properties.batch_order,
        properties.saturated,
        properties.half_precision,
        properties.double_gradients,
        properties.gradient_reach,
        response.class_order,
        response.ruled_out_by_the_teacher,
        response.one_sample,
        response.duplication,
        response.mixes_labels,
        response.impossible_classes,
    )
    assert (case.teacher.logits.argmax(1) != case.batch.target).any()
    for check in checks:
        check(RLD, case)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("temperatures", [(1.0, 4.0), (2.0, 0.5)])
def test_agrees_with_reference(
    alpha: float, beta: float, temperatures: tuple[float, float]
) -> None:
    def expected(case: Case) -> float:
        target = case.batch.target.tolist()
        return reference.rld(*logits_of(case), target, (alpha, beta), temperatures)

    properties.agrees(
        partial(RLD, alpha, beta, temperatures[1], temperatures[0]), expected
    )


def test_known_values() -> None:
    assert properties.value_of(
        partial(RLD, 1.0, 0.0), example()
    ).item() == pytest.approx(0.040777, abs=1e-6)
    assert properties.value_of(
        partial(RLD, 0.0, 1.0), example()
    ).item() == pytest.approx(0.497412, abs=1e-6)
    # The teacher ranks class 1 over the label 0: one class is left, and its confidence of class 1
    # is the student's of class 0.
    case = case_of([[1, 0, -1]], [[1, 2, 0]], [0])
    assert properties.value_of(RLD, case).item() == pytest.approx(0, abs=1e-12)


def test_by_hand() -> None:
    # The teacher (6, 3, 2, 1) / 12 ranks the label third: one class is below it, so MCD is 0. Its
    # confidence is 1/2, the student's in the label 1/4: 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3).
    case = case_of([[0, 0, 0, 0]], [[math.log(6), math.log(3), math.log(2), 0]], [2])
    confidence = math.log(4 / 3) / 2
    assert properties.value_of(RLD, case).item() == pytest.approx(confidence)
    # Ranked second, the classes (2, 1) / 3 are left against (1/2, 1/2).
    second = replace(case, batch=replace(case.batch, target=torch.tensor([1])))
    masked = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    value = properties.value_of(partial(RLD, 1.0, 3.0, 1.0), second)
    assert value.item() == pytest.approx(confidence + 3 * masked)


def test_the_minimum_is_the_teacher_where_it_is_right() -> None:
    case = right(random_case())
    properties.minimum(RLD, replace(case, student=case.teacher))
    assert not RLD.minimum_at_teacher


def test_the_minimum_where_the_teacher_is_wrong() -> None:
    """The student has the teacher's confidence, in the label, and its view of the classes below."""
    case = case_of([[0, 0, 0]], [[math.log(3), 0, 0]], [1])
    # p_max = 3/5 and one class tied with the label: nothing is left but the confidence.
    best = replace(
        case, student=Output(torch.tensor([[0, math.log(3), 0]], dtype=torch.float64))
    )
    value, (gradient,) = properties.gradients_of(RLD, best)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-9
    assert properties.value_of(RLD, replace(case, student=case.teacher)) > 0.1


def test_a_right_teacher_decouples_as_in_dkd() -> None:
    case = right(random_case())
    target = case.batch.target
    p = case.teacher.log_probs()
    q = case.student.log_probs()
    target_class, others = decoupled_kl(q, p, target)
    torch.testing.assert_close(confidence_kl(q, p, target), target_class)
    masked = masked_kl(case.student.logits, case.teacher.logits, target)
    torch.testing.assert_close(masked, others)


def test_the_shipped_method_is_the_authors() -> None:
    loss = response.shipped("rld")["rld"]
    assert isinstance(loss, RLD)
    assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 8.0, 4.0)
    assert loss.confidence_temperature == 1.0
    assert [loss.weight_at(epoch) for epoch in (0, 9, 19, 100)] == [0.05, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, math.nan, "2", True])
def test_bad_weights(name: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"RLD: {name} must be a finite number of at least 0"
    ):
        RLD(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "confidence_temperature"])
def test_bad_temperature(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(
        UserError, match=f"RLD: {name} must be a finite number greater than 0"
    ):
        RLD(**options)


def test_defaults() -> None:
    loss = RLD()
    assert loss.alpha == 1.0
    assert loss.beta == 8.0
    assert loss.temperature == 4.0
    assert loss.confidence_temperature == 1.0
