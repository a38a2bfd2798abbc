from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.logitstandardization import LogitStandardization, standardized
from kd_lightning.types import Batch, EnsembleOutput, Output, mean_log_probs
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference import kd as soft
from tests.reference import logitstandardization as reference

TEMPERATURES = (0.5, 1.0, 2.0, 20.0)


def case_of(
    student: list[list[float]],
    teacher: list[list[float]],
    dtype: torch.dtype = torch.float64,
) -> Case:
    z, v = (torch.tensor(logits, dtype=dtype) for logits in (student, teacher))
    rows = len(student)
    return Case(
        Output(z),
        Output(v),
        Batch(
            torch.zeros(rows, 1),
            torch.zeros(rows, dtype=torch.int64),
            torch.arange(rows),
        ),
    )


def ensemble_of(members: Tensor) -> EnsembleOutput:
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    return EnsembleOutput(
        mean_log_probs(members, weights), members=members, weights=weights
    )


def random_members(rows: int = 6, classes: int = 5) -> Tensor:
    return 3 * torch.randn(
        rows,
        2,
        classes,
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(LogitStandardization, temperature), random_case())


@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties_with_an_ensemble(check: properties.Check) -> None:
    check(
        LogitStandardization,
        replace(random_case(), teacher=ensemble_of(random_members())),
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_minimum_at_the_teacher_moved_and_scaled(temperature: float) -> None:
    case = random_case()
    make = partial(LogitStandardization, temperature)
    properties.minimum(make, replace(case, student=case.teacher))
    # The 1e-7 beside the deviation is not scaled with it.
    properties.minimum(
        make, replace(case, student=Output(2.5 * case.teacher.logits - 7)), atol=1e-7
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_agrees_with_reference(temperature: float) -> None:
    def expected(case: Case) -> float:
        student, teacher = case.student.logits.tolist(), case.teacher.logits.tolist()
        return reference.logit_standardization(student, teacher, temperature)

    # Two classes have z-scores of +-1/sqrt(2) alone: where both sides agree in all rows the loss is next to nothing.
    for seed, (classes, scale) in enumerate(
        [(3, 0.1), (3, 30.0), (7, 0.1), (7, 1.0), (7, 30.0)]
    ):
        case = random_case(classes=classes, scale=scale, seed=seed)
        value = properties.value_of(
            partial(LogitStandardization, temperature), case
        ).item()
        assert value == pytest.approx(expected(case), rel=1e-9)


def test_by_hand() -> None:
    # Two logits a < b: mean (a + b) / 2, unbiased deviation (b - a) / sqrt(2), z-scores -1/sqrt(2) and 1/sqrt(2), whatever
    # they are. At T = 2 their difference is r = 1/sqrt(2), so p = (1 - s, s) with s = 1 / (1 + exp(-r)).
    r = 1 / math.sqrt(2)
    s = 1 / (1 + math.exp(-r))
    assert properties.value_of(
        LogitStandardization, case_of([[0.0, 9.0]], [[-1.0, 4.0]])
    ).item() == pytest.approx(0, abs=1e-12)
    # The other way round q is (s, 1 - s), and KL = (s - (1 - s)) ln(s / (1 - s)) = (2 s - 1) r; times T^2 = 4.
    opposed = case_of([[9.0, 0.0]], [[-1.0, 4.0]])
    assert properties.value_of(LogitStandardization, opposed).item() == pytest.approx(
        4 * (2 * s - 1) * r, rel=1e-6
    )


def test_z_scores_by_hand() -> None:
    # (2, 4, 6): mean 4, deviation 2 (unbiased; the biased one is 1.63).
    assert standardized(torch.tensor([[2.0, 4.0, 6.0]])).tolist() == [
        pytest.approx([-1.0, 0.0, 1.0])
    ]
    assert (
        standardized(torch.tensor([[2.0, 4.0, 6.0]], dtype=torch.bfloat16)).dtype
        == torch.float32
    )


def test_of_unit_deviation_it_is_kd() -> None:
    case = random_case()
    z, v = (standardized(output.logits) for output in (case.student, case.teacher))
    value = properties.value_of(LogitStandardization, case)
    torch.testing.assert_close(
        value,
        properties.value_of(
            partial(KD, 2.0), replace(case, student=Output(z), teacher=Output(v))
        ),
    )
    assert not torch.isclose(value, properties.value_of(partial(KD, 2.0), case))


def moved(output: Output) -> Output:
    return properties.change(output, lambda t: t + 3.0)


def scaled(output: Output) -> Output:
    return properties.change(output, lambda t: 4.0 * t)


def rows_apart(output: Output) -> Output:
    """Each row moved and scaled by numbers of its own."""
    rows = torch.arange(1.0, len(output.logits) + 1, dtype=torch.float64)
    return Output(output.logits * rows[:, None] - 2 * rows[:, None])


@pytest.mark.parametrize("how", [moved, scaled, rows_apart])
def test_neither_sides_mean_and_scale_matter(how: Callable[[Output], Output]) -> None:
    case = random_case()
    value = properties.value_of(LogitStandardization, case)
    close = partial(torch.testing.assert_close, expected=value, rtol=1e-6, atol=0)
    close(
        properties.value_of(
            LogitStandardization, replace(case, student=how(case.student))
        )
    )
    close(
        properties.value_of(
            LogitStandardization, replace(case, teacher=how(case.teacher))
        )
    )
    turned = replace(
        case, student=Output(-case.student.logits)
    )  # a negative scale does matter
    assert not torch.isclose(
        properties.value_of(LogitStandardization, turned), value, rtol=1e-2
    )


def test_the_gradient_neither_moves_nor_scales_the_student() -> None:
    _, (gradient,) = properties.gradients_of(
        LogitStandardization, case := random_case()
    )
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(
        (gradient * case.student.logits).sum(1),
        torch.zeros(6, dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4, -1e4])
def test_constant_logits(level: float, dtype: torch.dtype) -> None:
    flat, other = [level] * 5, [0.0, 1.0, 2.0, 3.0, 5.0]
    both, student, teacher = (
        case_of([z], [v], dtype)
        for z, v in ((flat, flat), (flat, other), (other, flat))
    )
    for case in (both, student, teacher):
        value, (gradient,) = properties.gradients_of(LogitStandardization, case)
        assert value.isfinite()
        assert gradient.isfinite().all()
    assert properties.value_of(LogitStandardization, both).item() == pytest.approx(
        0, abs=1e-6
    )
    # Uniform on the constant side: T^2 sum_k p_k ln(5 p_k), and the other way round.
    p = soft.softened(reference.z_scores(other), 2.0)
    forward = 4 * math.fsum(x * math.log(5 * x) for x in p)
    backward = -4 * math.fsum(math.log(5 * x) / 5 for x in p)
    assert properties.value_of(LogitStandardization, student).item() == pytest.approx(
        forward, rel=1e-3
    )
    assert properties.value_of(LogitStandardization, teacher).item() == pytest.approx(
        backward, rel=1e-3
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_ensembles_members_are_standardized_one_by_one(temperature: float) -> None:
    case, members = random_case(), random_members()
    make = partial(LogitStandardization, temperature)
    value = properties.value_of(make, replace(case, teacher=ensemble_of(members)))
    targets = reference.ensemble(members.tolist(), [0.25, 0.75], temperature)
    student = [reference.z_scores(row) for row in case.student.logits.tolist()]
    assert value.item() == pytest.approx(
        soft.soft_target_loss(student, targets, temperature)
    )
    # A member whose logits are larger has no more of a say.
    louder = members * torch.tensor([10.0, 1.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        properties.value_of(make, replace(case, teacher=ensemble_of(louder))),
        value,
        rtol=1e-6,
        atol=0,
    )


def test_an_ensemble_of_equals_is_its_member() -> None:
    case = random_case()
    twice = ensemble_of(case.teacher.logits[:, None].expand(-1, 2, -1))
    alone = properties.value_of(LogitStandardization, case)
    torch.testing.assert_close(
        properties.value_of(LogitStandardization, replace(case, teacher=twice)), alone
    )


def test_the_shipped_method_is_the_papers() -> None:
    path = (
        Path(__file__).parents[2] / "configs" / "methods" / "logitstandardization.yaml"
    )
    losses = yaml.safe_load(path.read_text())["model"]["init_args"]["losses"]
    loss = LogitStandardization(**losses["logitstandardization"]["init_args"])
    assert (loss.weight, loss.temperature, losses["ce"]["init_args"]["weight"]) == (
        9.0,
        2.0,
        0.1,
    )


def test_top_k_caches_are_refused() -> None:
    assert LogitStandardization.exact_logits


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    with pytest.raises(
        UserError,
        match="LogitStandardization: temperature must be a finite number greater than 0",
    ):
        LogitStandardization(temperature)


def test_needs_a_teacher() -> None:
    case = random_case()
    with pytest.raises(UserError, match="LogitStandardization needs a teacher"):
        LogitStandardization()(case.student, None, case.batch)
