from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.logitmse import LogitMSE
from kd_lightning.teachers import EnsembleTeacher, Teacher
from kd_lightning.types import Batch, EnsembleOutput, Output, mean_log_probs
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference import kd as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def case_of(student: list[list[float]], teacher: Output) -> Case:
    rows = len(student)
    batch = Batch(
        torch.zeros(rows, 1), torch.zeros(rows, dtype=torch.int64), torch.arange(rows)
    )
    return Case(Output(torch.tensor(student, dtype=torch.float64)), teacher, batch)


def ensemble_of(members: Tensor, weights: list[float]) -> EnsembleOutput:
    w = torch.tensor(weights, dtype=torch.float64)
    return EnsembleOutput(mean_log_probs(members, w), members=members, weights=w)


def random_ensemble(
    rows: int = 6, classes: int = 5, scale: float = 1.0
) -> EnsembleOutput:
    rng = torch.Generator().manual_seed(7)
    return ensemble_of(
        scale * torch.randn(rows, 2, classes, generator=rng, dtype=torch.float64),
        [0.25, 0.75],
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(KD, temperature), random_case())


@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    case = random_case()
    check(KD, Case(case.student, random_ensemble(), case.batch))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_minimum_at_the_teacher(temperature: float) -> None:
    case = random_case()
    properties.minimum(
        partial(KD, temperature), Case(case.teacher, case.teacher, case.batch)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        return reference.kd(
            case.student.logits.tolist(), case.teacher.logits.tolist(), temperature
        )

    properties.agrees(partial(KD, temperature), expected)


def test_by_hand() -> None:
    # T = 2: the teacher's (0, 2 ln 3) / 2 is p = (1/4, 3/4), the student's (0, 0) is q = (1/2, 1/2).
    # 4 * (1/4 ln(1/2) + 3/4 ln(3/2)) = 3 ln 3 - 4 ln 2 = ln(27/16).
    teacher = Output(torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64))
    value, (gradient,) = properties.gradients_of(
        partial(KD, 2.0), case_of([[0.0, 0.0]], teacher)
    )
    assert value.item() == pytest.approx(math.log(27 / 16))
    # T^2 * (q - p) / T = 2 * (1/4, -1/4).
    assert gradient.tolist() == [pytest.approx([0.5, -0.5])]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradient_keeps_its_scale_as_temperature_grows(weight: float) -> None:
    """Hinton et al. 2015, section 2.1: T^2 dC/dz_i -> (z_i - v_i) / K; without the factor it would vanish."""
    case = random_case(rows=1, classes=10, scale=3.0)
    z, v = (t - t.mean() for t in (case.student.logits, case.teacher.logits))
    case = Case(Output(z), Output(v), case.batch)
    limit = (z - v) / 10
    largest = torch.cat([z, v]).abs().max().item()
    errors = []
    for temperature in (1e2, 1e3, 1e4):
        _, (gradient,) = properties.gradients_of(
            partial(KD, temperature, weight=weight), case
        )
        errors.append(((gradient - limit).norm() / limit.norm()).item())
        assert errors[-1] < largest / temperature
    # First order in 1 / T: ten times the temperature, a tenth of the error.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_limit_is_centered_mean_logit_mse() -> None:
    case = random_case(rows=8, classes=10, scale=3.0)
    limit = properties.value_of(
        partial(LogitMSE, classes="mean", center=True), case
    ).item()
    errors = [
        abs(properties.value_of(partial(KD, t), case).item() / limit - 1)
        for t in (1e3, 1e4)
    ]
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


def test_ensemble_by_hand() -> None:
    # T = 2: members (0, 2 ln 3) and (0, 0) are (1/4, 3/4) and (1/2, 1/2), their mean (3/8, 5/8).
    # The student (0, 2 ln(5/3)) / 2 is (3/8, 5/8) as well: no loss.
    members = torch.tensor([[[0.0, 2 * math.log(3)], [0.0, 0.0]]], dtype=torch.float64)
    properties.minimum(
        partial(KD, 2.0),
        case_of([[0.0, 2 * math.log(5 / 3)]], ensemble_of(members, [0.5, 0.5])),
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_ensemble_is_the_mean_at_the_temperature_in_use(temperature: float) -> None:
    case, ensemble = random_case(), random_ensemble(scale=3.0)
    value = KD(temperature)(case.student, ensemble, case.batch).item()
    targets = reference.arithmetic_mean(
        ensemble.members.tolist(), ensemble.weights.tolist(), temperature
    )
    assert value == pytest.approx(
        reference.soft_target_loss(case.student.logits.tolist(), targets, temperature)
    )
    tempered = KD(temperature)(case.student, Output(ensemble.logits), case.batch).item()
    assert (value == pytest.approx(tempered, rel=0.01)) == (temperature == 1.0)


class Fixed(Teacher):
    """A teacher that says the same whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def outputs(self, batch: Batch) -> Output:
        return Output(self.logits)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_distilling_an_ensemble_teacher(
    mean: Literal["arithmetic", "geometric"], temperature: float
) -> None:
    case, members = random_case(), random_ensemble(scale=3.0).members
    teacher = EnsembleTeacher(
        [Fixed(member) for member in members.unbind(1)], mean=mean, weights=[1.0, 3.0]
    )
    teacher.prepare(DigitsDataModule())
    means = {
        "arithmetic": reference.arithmetic_mean,
        "geometric": reference.geometric_mean,
    }
    targets = means[mean](members.tolist(), [0.25, 0.75], temperature)
    expected = reference.soft_target_loss(
        case.student.logits.tolist(), targets, temperature
    )
    assert KD(temperature)(
        case.student, teacher(case.batch), case.batch
    ).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    with pytest.raises(
        UserError, match="KD: temperature must be a finite number greater than 0"
    ):
        KD(temperature)


def test_needs_a_teacher() -> None:
    case = random_case()
    with pytest.raises(UserError, match="KD needs a teacher"):
        KD()(case.student, None, case.batch)
