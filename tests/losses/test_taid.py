from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.taid import TAID
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import example, logits_of
from tests.reference import taid as reference


def at(position: float, **options: Any) -> TAID:
    return TAID(start_at=position, **options)


CHECKS = [
    *(
        check
        for check in properties.ALL
        # The target has no gradient; `test_the_gradient_is_that_of_a_fixed_target` has it.
        if check is not properties.double_gradients
    ),
    *response.SOFT,
    properties.batch_size,
]


@pytest.mark.parametrize("position", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, position: float) -> None:
    check(partial(at, position), random_case())


@pytest.mark.parametrize("position", [0.1, 0.4, 0.9])
def test_agrees_with_reference(position: float) -> None:
    def expected(case: Case) -> float:
        return reference.taid(*logits_of(case), position)

    for case in (example(), random_case()):
        value = properties.value_of(partial(at, position), case)
        assert value.item() == pytest.approx(expected(case), rel=1e-6)


def test_known_value() -> None:
    value = properties.value_of(partial(at, 0.4), example())
    assert value.item() == pytest.approx(0.033910, abs=1e-6)


def test_the_gradient_is_that_of_a_fixed_target() -> None:
    """It is q - p_t per row, divided by the number of rows."""
    case = random_case()
    _, (gradient,) = properties.gradients_of(partial(at, 0.4), case)
    z = case.student.logits
    mixed = 0.6 * z + 0.4 * case.teacher.logits
    expected = (z.softmax(-1) - mixed.softmax(-1)) / len(z)
    torch.testing.assert_close(gradient, expected)


def test_at_the_end_it_is_kd() -> None:
    case = example()
    value = properties.value_of(partial(at, 1.0, temperature=3.0), case)
    expected = properties.value_of(partial(KD, 3.0), case)
    assert value.item() == pytest.approx(expected.item())


def trace(loss: TAID, case: Case, steps: int) -> tuple[list[float], list[float]]:
    """The losses and the positions of a student that moves towards its teacher."""
    student = case.student.logits.clone()
    losses = []
    positions = []
    for _ in range(steps):
        output = type(case.student)(student)
        losses.append(loss(output, case.teacher, case.batch).item())
        loss.after_step()
        positions.append(loss.position.item())
        student = student + 0.1 * (case.teacher.logits - student)
    return losses, positions


@pytest.mark.parametrize("alpha", [0.0, 5e-4, 0.5])
def test_the_position_follows_algorithm_1(alpha: float) -> None:
    loss = TAID(steps=20, start_at=0.2, alpha=alpha, beta=0.9)
    losses, positions = trace(loss, example(), 24)
    expected = reference.positions(losses, 20, 0.2, alpha, 0.9)
    assert positions == pytest.approx(expected, abs=1e-5)
    assert positions[-1] == 1.0
    assert positions == sorted(positions)


def test_a_checkpoint_holds_the_pace() -> None:
    case = example()
    whole = TAID(steps=20, alpha=0.5)
    _, expected = trace(whole, case, 3)
    assert set(whole.state_dict()) == {"position", "momentum", "last_loss", "done"}
    resumed = TAID(steps=20, alpha=0.5)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.position.item() == expected[-1]
    assert trace(resumed, case, 3) == trace(whole, case, 3)


def test_evaluation_does_not_move_the_target() -> None:
    loss = TAID()
    loss.eval()
    case = example()
    loss(case.student, case.teacher, case.batch)
    loss.after_step()
    assert loss.done == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"steps": True}, "steps must be a whole number of at least 1"),
        ({"start_at": 1.1}, r"start_at must be a number in \[0, 1\]"),
        ({"start_at": math.nan}, r"start_at must be a number in \[0, 1\]"),
        ({"beta": 1.0}, r"beta must be a number in \[0, 1\)"),
        ({"alpha": -1}, "alpha must be"),
        ({"temperature": 0}, "temperature must be a finite number greater than 0"),
    ],
)
def test_bad_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"TAID: {message}"):
        TAID(**options)


def test_top_k_caches_are_refused() -> None:
    assert TAID.exact_logits
