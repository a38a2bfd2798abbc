from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.ickd import ICKD, Form, correlation_distance
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, identical_connector, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import ickd as reference
from tests.reference.at import averaged_down, smaller
from tests.reference.fitnets import batch_normalized, convolved

STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (3, 3, 2)}
LARGER: features.Shapes = {"map": (3, 5, 1)}

variants = pytest.mark.parametrize("convention", get_args(Form))
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def identical(loss: Any) -> None:
    identical_connector(loss.connector)


def loss_of(convention: Form, case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(partial(ICKD, convention=convention), case, prepare)


@variants
@sizes
@pytest.mark.parametrize("check", features.WITH_ADAPTERS)
def test_properties(
    check: properties.Check, teacher: features.Shapes, convention: Form
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(convention, case), case)


@variants
def test_minimum_where_the_connector_gives_the_teachers_map(convention: Form) -> None:
    case = feature_case(TEACHER, TEACHER)
    best = Case(case.teacher, case.teacher, case.batch)
    properties.minimum(loss_of(convention, case, identical), best)


@variants
@sizes
def test_agrees_with_reference(teacher: features.Shapes, convention: Form) -> None:
    for seed in range(3):
        case = feature_case(STUDENT, teacher, seed=seed)
        loss: Any = loss_of(convention, case)().double()
        weight = loss.connector[0].weight.tolist()
        maps = [
            convolved(sample, weight, [0.0] * 3)
            for sample in case.student.features["map"].tolist()
        ]
        maps = batch_normalized(maps)
        hints = case.teacher.features["map"].tolist()
        size = smaller(maps[0][0], hints[0][0])
        sides = [
            [[averaged_down(channel, *size) for channel in sample] for sample in side]
            for side in (maps, hints)
        ]
        expected = reference.distance(sides[0], sides[1], convention == "code")
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("convention", "expected"), [("code", 0.344210), ("paper", 2.25)]
)
def test_value_of_the_sheet(convention: Form, expected: float) -> None:
    student, teacher = torch.tensor(sheet.STUDENT), torch.tensor(sheet.TEACHER)
    found = correlation_distance(student, teacher, convention)
    assert found.item() == pytest.approx(expected, abs=1e-6)


# Channels (1, 0) and (0, 1) do not correlate: the identity. The teacher's are both (2, 0): products
# of 4, rows (1, 1) / r2. Code: 2 (1 - 1/r2)^2 + 2 / 2 over 2 channels; paper: 9 + 16 + 16 + 9 over 4.
@pytest.mark.parametrize(
    ("convention", "expected"), [("code", (1 - 0.5**0.5) ** 2 + 0.5), ("paper", 12.5)]
)
def test_by_hand(convention: Form, expected: float) -> None:
    case = case_of(
        [[[[1.0, 0.0]], [[0.0, 1.0]]]], [[[[2.0, 0.0]], [[2.0, 0.0]]]], role="map"
    )
    value = value_of(loss_of(convention, case, identical), case)
    assert value.item() == pytest.approx(expected)


def test_scale_is_free_in_the_code_alone() -> None:
    case = feature_case(TEACHER, TEACHER)
    own, target = case.student.features["map"], case.teacher.features["map"]
    value = correlation_distance(own, target)
    assert correlation_distance(5 * own, target / 7).item() == pytest.approx(
        value.item()
    )
    assert correlation_distance(5 * own, target, "paper") > correlation_distance(
        own, target, "paper"
    )


@variants
def test_trains_residual_networks(convention: Form, tmp_path: Path) -> None:
    features.trains(partial(ICKD, convention=convention, weight=1e-2), tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("ickd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 500 * run.metrics["train_loss_ickd"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "ICKD: layer must be the role of a layer"),
        (
            {"convention": "benchmark"},
            "ICKD: convention must be 'code' or 'paper', got 'benchmark'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ICKD(**arguments)


def test_needs_a_teacher_build_and_maps() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="ICKD needs a teacher"):
        ICKD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="ICKD has no adapters yet"):
        ICKD()(case.student, case.teacher, case.batch)
    vectors = feature_case({"map": (2,)}, {"map": (2,)})
    with pytest.raises(UserError, match=r"ICKD reads maps \(B, C, H, W\)"):
        loss_of("code", vectors)()
