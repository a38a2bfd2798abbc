from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses import Probe
from kd_lightning.losses.base import weight_of
from kd_lightning.losses.targetmse import TargetMSE
from kd_lightning.spec import Spec
from kd_lightning.types import Batch, Output
from tests.losses import properties
from tests.losses.properties import Case
from tests.reference import hard

NAN = math.nan


def case_of(values: list[float], target: list[float]) -> Case:
    student = Output(torch.tensor(values, dtype=torch.float64)[:, None])
    batch = Batch(
        torch.zeros(len(target), 1), torch.tensor(target), torch.arange(len(target))
    )
    return Case(student, Output(torch.zeros_like(student.logits)), batch)


def random_case(rows: int = 6) -> Case:
    rng = torch.Generator().manual_seed(0)
    values, target = torch.randn(2, rows, generator=rng, dtype=torch.float64)
    return case_of(values.tolist(), target.float().tolist())


def with_unknown(case: Case, rows: list[int]) -> Case:
    target = case.batch.target.clone()
    target[rows] = NAN
    return replace(case, batch=replace(case.batch, target=target))


@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check) -> None:
    check(TargetMSE, random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_hold_with_unknown_targets(check: properties.Check) -> None:
    check(TargetMSE, with_unknown(random_case(), [0, 3]))


def test_minimum_at_the_target() -> None:
    properties.minimum(TargetMSE, case_of([1.5, -2.0, 0.0], [1.5, -2.0, 0.0]))


@pytest.mark.parametrize("unknown", [[], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_agrees_with_reference(unknown: list[int]) -> None:
    case = with_unknown(random_case(), unknown)
    expected = hard.mean_squared_error(
        case.student.logits[:, 0].tolist(), case.batch.target.tolist()
    )
    assert properties.value_of(TargetMSE, case).item() == pytest.approx(expected)


def test_by_hand() -> None:
    # Differences 2 and -1: (4 + 1) / 2. The third target is unknown.
    case = case_of([3.0, 0.0, 9.0], [1.0, 1.0, NAN])
    value, (gradient,) = properties.gradients_of(TargetMSE, case)
    assert value.item() == pytest.approx(2.5)
    # 2 (z - y) / 2.
    assert gradient.tolist() == [[2.0], [-1.0], [0.0]]


def test_several_values_per_sample() -> None:
    # Two samples of two values; one is unknown: (1 + 4 + 9) / 3.
    batch = Batch(
        torch.zeros(2, 1), torch.tensor([[0.0, NAN], [0.0, 0.0]]), torch.arange(2)
    )
    student = Output(torch.tensor([[1.0], [7.0], [2.0], [3.0]]))
    assert TargetMSE()(student, None, batch).item() == pytest.approx(14 / 3)
    assert weight_of(TargetMSE.mean_over, batch) == 3


def test_no_known_target_costs_nothing_and_keeps_the_graph() -> None:
    case = with_unknown(random_case(), list(range(6)))
    value, (gradient,) = properties.gradients_of(TargetMSE, case)
    assert value.item() == 0.0
    assert not gradient.any()


def test_mixed_samples_count_both_targets_by_their_shares() -> None:
    # 1/4 (3 - 1)^2 + 3/4 (3 - 5)^2 = 4; the second row has only its partner's: 1/2 (0 - 2)^2 = 2.
    case = case_of([3.0, 0.0, 1.0], [1.0, NAN, NAN])
    partner = torch.tensor([5.0, 2.0, NAN])
    share = torch.tensor([0.25, 0.5, 0.5])
    case = replace(case, batch=replace(case.batch, partner=partner, share=share))
    value, (gradient,) = properties.gradients_of(TargetMSE, case)
    assert value.item() == pytest.approx((4 + 2) / 2)
    assert gradient[2].item() == 0
    assert weight_of(TargetMSE.mean_over, case.batch) == 2


def test_rows_of_another_width_are_refused() -> None:
    probe = Probe(Output(torch.zeros(2, 10)), Spec("digits"))
    with pytest.raises(
        UserError, match="TargetMSE needs rows of width 1, got 10: the data digits"
    ):
        TargetMSE().build(probe, None)
    TargetMSE().build(Probe(Output(torch.zeros(2, 1))), None)


def test_needs_no_teacher() -> None:
    case = random_case()
    assert not TargetMSE.uses_teacher
    assert TargetMSE()(case.student, None, case.batch) > 0
