from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.wsld import WSLD, sample_weights, soft_cross_entropy
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import wsld as reference

CHECKS = [
    *(check for check in properties.ALL if check is not properties.double_gradients),
    *response.LABELLED,
    response.mixes_labels,
    response.impossible_classes,
    properties.batch_size,
]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(WSLD, temperature), random_case())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.wsld(*logits_of(case), case.batch.target.tolist(), temperature)

    properties.agrees(partial(WSLD, temperature), expected)


def test_known_values() -> None:
    case = example()
    q = case.student.log_probs()
    weights = sample_weights(q, case.teacher.log_probs(), case.batch.target)
    assert weights.tolist() == pytest.approx([0.632121, 0.909269], abs=1e-6)
    value = properties.value_of(partial(WSLD, 2.0), case)
    assert value.item() == pytest.approx(3.151279, abs=1e-6)


def test_by_hand() -> None:
    # T = 1. The student gives the label 1/4, the teacher 1/2: the costs are ln 4 and ln 2, their
    # ratio is 2 (but for the 1e-7), and the weight is 1 - e^-2.
    case = case_of([[0, math.log(3)]], [[0, 0]], [0])
    soft = (math.log(4) + math.log(4 / 3)) / 2
    value, (gradient,) = properties.gradients_of(partial(WSLD, 1.0), case)
    weight = 1 - math.exp(-2)
    assert value.item() == pytest.approx(weight * soft, rel=1e-6)
    # w (q - p).
    assert gradient.tolist() == [pytest.approx([-weight / 4, weight / 4], rel=1e-6)]


def test_gradients_of_the_soft_loss() -> None:
    """The weights are constants, so finite differences need to hold them fixed."""
    case = random_case()
    target = case.batch.target
    teacher = case.teacher.log_probs()
    weights = sample_weights(case.student.log_probs(), teacher, target)

    def weighted(logits: Tensor) -> Tensor:
        costs = soft_cross_entropy(
            Output(logits).log_probs(4.0), case.teacher.log_probs(4.0)
        )
        return 16 * (weights * costs).mean()

    logits = properties.leaf(case.student.logits)
    assert torch.autograd.gradcheck(weighted, [logits])
    [expected] = torch.autograd.grad(weighted(logits), [logits])
    _, (gradient,) = properties.gradients_of(WSLD, case)
    torch.testing.assert_close(gradient, expected)


def test_no_gradient_at_the_teacher() -> None:
    """The value there is the teacher's entropy times 1 - 1/e, not 0."""
    case = random_case()
    same = replace(case, student=case.teacher)
    value, (gradient,) = properties.gradients_of(partial(WSLD, 1.0), same)
    p = case.teacher.log_probs()
    entropy = -(p.exp() * p).sum(1).mean().item()
    assert value.item() == pytest.approx(entropy * (1 - math.exp(-1)), rel=1e-5)
    assert gradient.abs().max() < 1e-9
    assert not WSLD.minimum_at_teacher


def test_samples_that_the_student_knows_are_left_alone() -> None:
    case = case_of([[20, 0], [0, 20]], [[1, 0], [1, 0]], [0, 0])
    _, (gradient,) = properties.gradients_of(WSLD, case)
    assert gradient[0].abs().max() < 1e-6
    assert gradient[1].abs().max() > 0.1


def test_the_shipped_method_is_the_authors() -> None:
    losses = response.shipped("wsld")
    assert (losses["ce"].weight, losses["wsld"].weight) == (1.0, 2.25)


def test_bad_temperature() -> None:
    with pytest.raises(UserError, match="WSLD: temperature must be a finite number"):
        WSLD(temperature=0)


def test_defaults() -> None:
    loss = WSLD()
    assert loss.temperature == 4.0
