from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.ctkd import CTKD
from kd_lightning.losses.kd import KD
from kd_lightning.types import Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.relations import trains
from tests.losses.response import case_of, logits_of
from tests.reference import ctkd as reference
from tests.reference.kd import kd


def at(theta: float, epoch: int = 0, **arguments: Any) -> CTKD:
    """A loss in double precision with this parameter, in this epoch."""
    loss = CTKD(**arguments).double()
    torch.nn.init.constant_(loss.theta, theta)
    loss.on_epoch_start(epoch)
    return loss


def gradient_of_theta(loss: CTKD, case: Case) -> float:
    loss.zero_grad()
    loss(case.student, case.teacher, case.batch).backward()
    assert loss.theta.grad is not None
    return loss.theta.grad.item()


@pytest.mark.parametrize("theta", [-2.0, 1.0])
@pytest.mark.parametrize(
    "check", [*properties.ALL, *response.SOFT, properties.batch_size]
)
def test_properties(check: properties.Check, theta: float) -> None:
    check(partial(at, theta), random_case())


@pytest.mark.parametrize("theta", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize(("low", "span"), [(1.0, 20.0), (2.0, 3.0), (4.0, 0.0)])
def test_agrees_with_reference(theta: float, low: float, span: float) -> None:
    def expected(case: Case) -> float:
        return kd(*logits_of(case), reference.temperature(theta, low, span))

    properties.agrees(partial(at, theta, low=low, span=span), expected)


def test_known_values() -> None:
    loss = CTKD()
    assert loss.temperature == pytest.approx(15.62, abs=5e-3)
    known = {1: -0.0245, 5: -0.5, 10: -1.0, 11: -1.0, 200: -1.0}
    for epoch, expected in known.items():
        loss.on_epoch_start(epoch - 1)
        assert loss.reversal.item() == pytest.approx(expected, abs=5e-5)
        assert loss.reversal.item() == pytest.approx(
            reference.reversal(epoch, 10), abs=1e-6
        )


def test_counts_epochs_from_the_start() -> None:
    loss = CTKD(start=30)
    loss.on_epoch_start(34)
    assert loss.reversal.item() == pytest.approx(-0.5)
    loss.on_epoch_start(0)
    assert loss.reversal.item() == pytest.approx(-0.0245, abs=5e-5)


def test_by_hand() -> None:
    # theta = 0, low = 1, span = 2: T = 2. The value is KD's; see its test by hand.
    case = case_of([[0, 0]], [[0, 2 * 1.0986122886681098]])
    expected = KD(2.0)(case.student, case.teacher, case.batch)
    value = properties.value_of(partial(at, 0.0, low=1.0, span=2.0), case)
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("epoch", [0, 4, 9, 50])
def test_the_gradient_of_the_temperature_is_reversed(epoch: int) -> None:
    """It is the reversal times that of the value, the factor T^2 included."""
    case = random_case()
    step = 1e-5
    values = [
        properties.value_of(partial(at, 1 + d), case).item() for d in (step, -step)
    ]
    slope = (values[0] - values[1]) / (2 * step)
    expected = reference.reversal(epoch + 1, 10) * slope
    assert gradient_of_theta(at(1.0, epoch), case) == pytest.approx(expected, rel=1e-5)
    assert abs(slope) > 1e-6


def test_a_step_of_descent_raises_the_loss() -> None:
    for seed in range(4):
        case = random_case(seed=seed, scale=4.0)
        loss = at(0.0, 20)
        before = loss(case.student, case.teacher, case.batch).item()
        step = gradient_of_theta(loss, case)
        with torch.no_grad():
            loss.theta.sub_(1e-3 * step)
        assert loss(case.student, case.teacher, case.batch).item() > before


def test_the_student_still_descends() -> None:
    case = random_case()
    loss = at(1.0, 20)
    temperature = loss.temperature
    _, (gradient,) = properties.gradients_of(lambda: loss, case)
    _, (expected,) = properties.gradients_of(partial(KD, temperature), case)
    torch.testing.assert_close(gradient, expected)


def test_equal_networks_do_not_move_the_temperature() -> None:
    case = random_case()
    same = replace(case, student=Output(case.teacher.logits.clone().requires_grad_()))
    assert gradient_of_theta(at(1.0, 20), same) == pytest.approx(0, abs=1e-9)


def test_trains_and_keeps_its_temperature(tmp_path: Path) -> None:
    module, content = trains("ctkd", tmp_path)
    loss = module.losses["ctkd"]
    assert isinstance(loss, CTKD)
    assert loss.theta.item() != 1.0
    assert content["state_dict"]["losses.ctkd.theta"] == loss.theta
    assert "losses.ctkd.reversal" in content["state_dict"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("low", 0), ("span", -1), ("length", 0), ("length", 2.5), ("length", True)],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"CTKD: {name} must be"):
        CTKD(**{name: value})


def test_defaults() -> None:
    loss = CTKD()
    assert loss.low == 1.0
    assert loss.span == 20.0
    assert loss.length == 10
