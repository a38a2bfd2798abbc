from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import weight_of
from kd_lightning.losses.dkd import DKD, decoupled_kl
from kd_lightning.losses.kd import KD
from kd_lightning.types import UNLABELLED, Batch, EnsembleOutput, Output, mean_log_probs
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference import dkd as reference
from tests.reference import kd as soft

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)
WEIGHTS = ((1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.3))


def case_of(
    student: list[list[float]], teacher: list[list[float]], target: list[int]
) -> Case:
    z, v = (torch.tensor(logits, dtype=torch.float64) for logits in (student, teacher))
    return Case(
        Output(z),
        Output(v),
        Batch(torch.zeros(len(z), 1), torch.tensor(target), torch.arange(len(z))),
    )


def unlabelled(case: Case, rows: list[int]) -> Case:
    case.batch.target[rows] = UNLABELLED
    return case


def random_ensemble(rows: int = 6, classes: int = 5) -> EnsembleOutput:
    members = 3 * torch.randn(
        rows,
        2,
        classes,
        generator=torch.Generator().manual_seed(7),
        dtype=torch.float64,
    )
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    return EnsembleOutput(
        mean_log_probs(members, weights), members=members, weights=weights
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(DKD, temperature=temperature), random_case())


@pytest.mark.parametrize(("alpha", "beta"), WEIGHTS)
def test_properties_of_each_part(alpha: float, beta: float) -> None:
    for check in properties.ALL:
        check(partial(DKD, alpha, beta), random_case())


@pytest.mark.parametrize("check", properties.ALL)
def test_properties_hold_with_an_ensemble_and_unlabelled_rows(
    check: properties.Check,
) -> None:
    case = unlabelled(random_case(), [0, 3])
    check(DKD, replace(case, teacher=random_ensemble()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_minimum_at_the_teacher(temperature: float) -> None:
    case = random_case()
    properties.minimum(
        partial(DKD, temperature=temperature), replace(case, student=case.teacher)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("alpha", "beta"), WEIGHTS)
def test_agrees_with_reference(alpha: float, beta: float, temperature: float) -> None:
    def expected(case: Case) -> float:
        student, teacher, target = (
            case.student.logits.tolist(),
            case.teacher.logits.tolist(),
            case.batch.target.tolist(),
        )
        return reference.dkd(student, teacher, target, alpha, beta, temperature)

    properties.agrees(partial(DKD, alpha, beta, temperature), expected)


def test_two_classes_have_no_others() -> None:
    case = random_case(classes=2)
    assert properties.value_of(partial(DKD, 0.0, 1.0), case).item() == 0.0
    torch.testing.assert_close(
        properties.value_of(DKD, case), properties.value_of(KD, case)
    )


def test_by_hand() -> None:
    # T = 1. The student is uniform over three classes: target 1/3 against 2/3, the others (1/2, 1/2).
    # The teacher's (2, 1, 1) / 4: target 1/2 against 1/2, the others (1/2, 1/2): TCKD alone,
    #   1/2 ln((1/2) / (1/3)) + 1/2 ln((1/2) / (2/3)) = 1/2 ln(9/8).
    # The teacher's (4, 6, 2) / 12: target 1/3 as the student's, the others (3/4, 1/4): NCKD alone,
    #   3/4 ln(3/2) + 1/4 ln(1/2) = 1/4 ln(27/16).
    uniform = [0.0, 0.0, 0.0]
    first = case_of([uniform], [[math.log(2), 0.0, 0.0]], [0])
    second = case_of([uniform], [[math.log(2), math.log(3), 0.0]], [0])
    for alpha, beta in WEIGHTS:
        make = partial(DKD, alpha, beta, 1.0)
        assert properties.value_of(make, first).item() == pytest.approx(
            alpha / 2 * math.log(9 / 8)
        )
        assert properties.value_of(make, second).item() == pytest.approx(
            beta / 4 * math.log(27 / 16)
        )
    # T = 2 halves the logits and multiplies by 4.
    doubled = case_of([uniform], [[2 * math.log(2), 2 * math.log(3), 0.0]], [0])
    assert properties.value_of(
        partial(DKD, 1.0, 8.0, 2.0), doubled
    ).item() == pytest.approx(8 * math.log(27 / 16))
    # The mean of both rows, labels in other columns.
    both = case_of(
        [uniform, uniform],
        [[0.0, 0.0, math.log(2)], [math.log(3), math.log(2), 0.0]],
        [2, 1],
    )
    expected = (math.log(9 / 8) / 2 + 8 * math.log(27 / 16) / 4) / 2
    assert properties.value_of(
        partial(DKD, 1.0, 8.0, 1.0), both
    ).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_both_parts_are_kd(scale: float, temperature: float) -> None:
    """KD = TCKD + (1 - p_t) NCKD, of a single teacher and of an ensemble."""
    case = random_case(rows=8, classes=10, scale=scale)
    for teacher in (case.teacher, random_ensemble(8, 10)):
        p, q = teacher.log_probs(temperature), case.student.log_probs(temperature)
        target_class, others = decoupled_kl(q, p, case.batch.target)
        assert target_class.shape == others.shape == (8,)
        wrong = p.exp().sum(1) - p.exp().gather(1, case.batch.target[:, None])[:, 0]
        kd = KD(temperature)(case.student, teacher, case.batch)
        torch.testing.assert_close(
            temperature**2 * (target_class + wrong * others).mean(),
            kd,
            rtol=1e-9,
            atol=1e-12,
        )


def test_kd_is_dkd_with_its_own_beta() -> None:
    """Of one sample, with beta = 1 - p_t, values and gradients are those of KD."""
    case = random_case(rows=1)
    p_target = case.teacher.log_probs(4.0)[0, case.batch.target[0]].exp().item()
    value, gradients = properties.gradients_of(partial(DKD, 1.0, 1 - p_target), case)
    torch.testing.assert_close((value, gradients), properties.gradients_of(KD, case))


def test_a_teacher_that_is_sure_still_teaches_the_others() -> None:
    """What the method is for: KD forgets how the teacher ranks the other classes, NCKD does not."""
    sure = [50.0, 3.0, 0.0]
    case = case_of([[50.0, 0.0, 3.0]], [sure], [0])
    assert properties.value_of(partial(KD, 1.0), case) < 1e-15
    assert properties.value_of(partial(DKD, temperature=1.0), case) > 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_saturated_logits_by_hand(dtype: torch.dtype, temperature: float) -> None:
    # The student is sure of class 1, the teacher of class 0, the label. p = (1, 0), so TCKD is ln 1 - ln q_t = 2e4 / T.
    # Among the others the teacher is indifferent, (1/2, 1/2), and the student says (1, 0): NCKD is about 1/2 * 2e4 / T.
    # Both times T^2, to a relative 1e-4: the ln 2 of the teacher's entropy.
    case = properties.cast(
        case_of([[-1e4, 1e4, -1e4]], [[1e4, -1e4, -1e4]], [0]), dtype
    )
    value, (gradient,) = properties.gradients_of(
        partial(DKD, 1.0, 8.0, temperature), case
    )
    assert value.item() == pytest.approx(5 * 2e4 * temperature, rel=1e-3)
    # d/dz: T (-1, 1, 0) for the binary part, 8 T ((0, 1, 0) - (0, 1/2, 1/2)) for the others.
    assert gradient.tolist() == [
        pytest.approx([-temperature, 5 * temperature, -4 * temperature], rel=1e-3)
    ]


def test_unlabelled_rows_are_ignored() -> None:
    case = unlabelled(random_case(), [1, 4])
    value, (gradient,) = properties.gradients_of(DKD, case)
    kept = properties.select(case, torch.tensor([0, 2, 3, 5]))
    torch.testing.assert_close(value, properties.value_of(DKD, kept))
    assert not gradient[[1, 4]].any()
    assert gradient[[0, 2, 3, 5]].all()
    target = case.batch.target.tolist()
    expected = reference.dkd(
        case.student.logits.tolist(),
        case.teacher.logits.tolist(),
        target,
        1.0,
        8.0,
        4.0,
    )
    assert value.item() == pytest.approx(expected)


def test_unlabelled_batch_costs_nothing() -> None:
    case = unlabelled(random_case(), list(range(6)))
    value, (gradient,) = properties.gradients_of(DKD, case)  # fails without a graph
    assert value.item() == 0.0
    assert not gradient.any()


def test_counts_the_labelled() -> None:
    """What a mean over several processes is weighted by, so that it is the mean over all labelled samples."""
    case = unlabelled(random_case(), [1, 4])
    assert weight_of("labelled", case.batch) == 4
    assert weight_of("labelled", replace(case.batch, placeholder=True)) == 0
    parts = [properties.select(case, rows) for rows in torch.arange(6).split([2, 4])]
    total = sum(
        properties.value_of(DKD, part) * weight_of(DKD.mean_over, part.batch)
        for part in parts
    )
    torch.testing.assert_close(total / 4, properties.value_of(DKD, case))


def test_mixed_samples_cost_what_either_label_costs_by_its_share() -> None:
    case = unlabelled(random_case(), [1, 4])
    share = torch.tensor([1.0, 0.0, 0.25, 0.25, 0.25, 0.5])
    partner = torch.tensor([0, 1, 2, UNLABELLED, UNLABELLED, 3])
    case = replace(case, batch=replace(case.batch, partner=partner, share=share))

    def alone(row: int, target: Tensor) -> float:
        one = [
            t[row : row + 1].tolist()
            for t in (case.student.logits, case.teacher.logits, target)
        ]
        return reference.dkd(one[0], one[1], one[2], 1.0, 8.0, 4.0)

    own, other = (
        [alone(row, target) for row in range(6)]
        for target in (case.batch.target, partner)
    )
    mixed = [
        s * a + (1 - s) * b for s, a, b in zip(share.tolist(), own, other, strict=True)
    ]
    assert (
        weight_of(DKD.mean_over, case.batch) == 5
    )  # all but the fifth, neither part of which has a label
    assert properties.value_of(DKD, case).item() == pytest.approx(math.fsum(mixed) / 5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_an_ensemble_is_decoupled_at_the_temperature_in_use(temperature: float) -> None:
    case, ensemble = random_case(), random_ensemble()
    targets = soft.arithmetic_mean(
        ensemble.members.tolist(), ensemble.weights.tolist(), temperature
    )
    as_logits = [[temperature * math.log(p) for p in row] for row in targets]
    expected = reference.dkd(
        case.student.logits.tolist(),
        as_logits,
        case.batch.target.tolist(),
        1.0,
        8.0,
        temperature,
    )
    value = DKD(temperature=temperature)(case.student, ensemble, case.batch)
    assert value.item() == pytest.approx(expected)


def test_the_shipped_method_is_the_papers() -> None:
    path = Path(__file__).parents[2] / "configs" / "methods" / "dkd.yaml"
    losses = yaml.safe_load(path.read_text())["model"]["init_args"]["losses"]
    loss = DKD(**losses["dkd"]["init_args"])
    assert (
        loss.alpha,
        loss.beta,
        loss.temperature,
        losses["ce"]["init_args"]["weight"],
    ) == (
        1.0,
        8.0,
        4.0,
        1.0,
    )
    assert [loss.weight_at(epoch) for epoch in (0, 9, 19, 20, 239)] == [
        0.05,
        0.5,
        1.0,
        1.0,
        1.0,
    ]


def test_top_k_caches_are_refused() -> None:
    assert DKD.exact_logits


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    with pytest.raises(
        UserError, match="DKD: temperature must be a finite number greater than 0"
    ):
        DKD(temperature=temperature)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "2", True])
def test_bad_weights(name: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"DKD: {name} must be a finite number of at least 0"
    ):
        DKD(**{name: value})


def test_needs_a_teacher() -> None:
    case = random_case()
    with pytest.raises(UserError, match="DKD needs a teacher"):
        DKD()(case.student, None, case.batch)
