from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference import hard

SMOOTHING = (0.0, 0.2)


def case_of(logits: list[list[float]], target: list[int]) -> Case:
    student = torch.tensor(logits, dtype=torch.float64)
    batch = Batch(
        torch.zeros(len(target), 1), torch.tensor(target), torch.arange(len(target))
    )
    return Case(Output(student), Output(torch.zeros_like(student)), batch)


def unlabelled(case: Case, rows: list[int]) -> Case:
    case.batch.target[rows] = UNLABELLED
    return case


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check, smoothing: float) -> None:
    check(partial(CrossEntropy, label_smoothing=smoothing), random_case())


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_properties_hold_with_unlabelled_rows(smoothing: float) -> None:
    for check in properties.ALL:
        check(
            partial(CrossEntropy, label_smoothing=smoothing),
            unlabelled(random_case(), [0, 3]),
        )


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_agrees_with_reference(smoothing: float) -> None:
    def reference(case: Case) -> float:
        return hard.cross_entropy(
            case.student.logits.tolist(), case.batch.target.tolist(), smoothing
        )

    properties.agrees(partial(CrossEntropy, label_smoothing=smoothing), reference)


def test_agrees_with_reference_on_unlabelled_rows() -> None:
    case = unlabelled(random_case(), [0, 3])
    expected = hard.cross_entropy(
        case.student.logits.tolist(), case.batch.target.tolist(), 0.1
    )
    assert properties.value_of(
        partial(CrossEntropy, label_smoothing=0.1), case
    ).item() == pytest.approx(expected)


def test_by_hand() -> None:
    # Logits (0, ln 3) are probabilities (1/4, 3/4). Label 0 costs ln 4, label 1 ln(4/3), their mean is ln(16/3) / 2.
    case = case_of([[0.0, math.log(3)], [0.0, math.log(3)]], [0, 1])
    value, (gradient,) = properties.gradients_of(CrossEntropy, case)
    assert value.item() == pytest.approx(math.log(16 / 3) / 2)
    # (q - y) / B: ((1/4, 3/4) - (1, 0)) / 2 and ((1/4, 3/4) - (0, 1)) / 2.
    assert gradient.tolist() == [
        pytest.approx([-3 / 8, 3 / 8]),
        pytest.approx([1 / 8, -1 / 8]),
    ]


def test_label_smoothing_by_hand() -> None:
    # s = 0.2, K = 2: y = 0.8 * (1, 0) + 0.1 = (0.9, 0.1), so 0.9 ln 4 + 0.1 ln(4/3) = ln 4 - 0.1 ln 3.
    value = properties.value_of(
        partial(CrossEntropy, label_smoothing=0.2), case_of([[0.0, math.log(3)]], [0])
    )
    assert value.item() == pytest.approx(math.log(4) - 0.1 * math.log(3))


def test_smoothed_minimum_is_the_entropy_of_the_smoothed_label() -> None:
    # s = 0.3, K = 3: y = (0.8, 0.1, 0.1), the best logits are ln y, and there the loss is the entropy of y.
    y = [0.8, 0.1, 0.1]
    best = case_of([[math.log(p) for p in y]], [0])
    properties.minimum(
        partial(CrossEntropy, label_smoothing=0.3),
        best,
        value=-sum(p * math.log(p) for p in y),
    )


def test_unlabelled_rows_are_ignored() -> None:
    case = unlabelled(random_case(), [1, 4])
    value, (gradient,) = properties.gradients_of(CrossEntropy, case)
    kept = properties.select(case, torch.tensor([0, 2, 3, 5]))
    torch.testing.assert_close(value, properties.value_of(CrossEntropy, kept))
    assert not gradient[[1, 4]].any()
    assert gradient[[0, 2, 3, 5]].all()


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_unlabelled_batch_costs_nothing(smoothing: float) -> None:
    case = unlabelled(random_case(), list(range(6)))
    logits = case.student.logits.requires_grad_()
    value = CrossEntropy(label_smoothing=smoothing)(case.student, None, case.batch)
    assert value.item() == 0.0
    torch.autograd.backward(value)  # fails without a graph
    assert logits.grad is not None
    assert not logits.grad.any()


def test_needs_no_teacher() -> None:
    case = random_case()
    loss = CrossEntropy()
    assert torch.equal(
        loss(case.student, None, case.batch),
        loss(case.student, case.teacher, case.batch),
    )


@pytest.mark.parametrize("smoothing", [1, 1.0, -0.1, 1.5, math.nan])
def test_bad_label_smoothing(smoothing: float) -> None:
    with pytest.raises(UserError, match="CrossEntropy: label_smoothing must be in"):
        CrossEntropy(label_smoothing=smoothing)
