from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.harddistillation import HardDistillation
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import harddistillation as reference
from tests.test_sparse import sparse


@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check) -> None:
    check(HardDistillation, random_case())


def test_agrees_with_reference() -> None:
    def expected(case: Case) -> float:
        return reference.hard(*logits_of(case))

    properties.agrees(HardDistillation, expected)


def test_known_value() -> None:
    value = properties.value_of(HardDistillation, example())
    assert value.item() == pytest.approx(0.407606, abs=1e-6)


def test_by_hand() -> None:
    # The teacher prefers class 1, to which the student gives 1/4.
    case = case_of([[math.log(3), 0]], [[0, 0.1]])
    value, (gradient,) = properties.gradients_of(HardDistillation, case)
    assert value.item() == pytest.approx(math.log(4))
    assert gradient.tolist() == [pytest.approx([3 / 4, -3 / 4])]


def test_the_minimum_is_to_be_sure_of_the_decision() -> None:
    case = random_case()
    sure = replace(case, student=Output(1e3 * case.teacher.logits))
    value, (gradient,) = properties.gradients_of(HardDistillation, sure)
    assert value == 0
    assert gradient.abs().max() < 1e-9
    same = replace(case, student=case.teacher)
    assert properties.value_of(HardDistillation, same) > 0
    assert not HardDistillation.minimum_at_teacher


def test_a_top_k_cache_serves_it() -> None:
    case = random_case(classes=50)
    [temperature] = HardDistillation().teacher_temperatures
    top = sparse(case.teacher.logits, 3, (temperature,))
    value = HardDistillation()(case.student, top, case.batch)
    torch.testing.assert_close(value, properties.value_of(HardDistillation, case))
    assert not HardDistillation.exact_logits


def test_reads_the_distillation_head() -> None:
    case = random_case()
    other = random_case(seed=1).student.logits
    student = Output(case.student.logits, {"distillation": other})
    loss = HardDistillation("distillation")
    value = loss(student, case.teacher, case.batch)
    plain = HardDistillation()(Output(other), case.teacher, case.batch)
    assert torch.equal(value, plain)
    # The teacher has no such head.
    assert loss.student_roles == {"distillation"}
    assert loss.teacher_roles == set()
    assert HardDistillation().student_roles == set()
    with pytest.raises(
        UserError, match="HardDistillation: the head 'distillation' returned nothing"
    ):
        loss(case.student, case.teacher, case.batch)


def test_the_shipped_method_is_the_papers() -> None:
    losses = response.shipped("harddistillation")
    assert losses["ce"].weight == losses["harddistillation"].weight == 0.5
