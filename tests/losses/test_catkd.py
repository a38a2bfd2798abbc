from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.catkd import CATKD, class_map_distance, class_maps
from kd_lightning.weights import network_weights
from tests.losses import features, properties, sheet
from tests.losses.features import feature_case, made
from tests.losses.properties import Case, Make, change, leaf, value_of
from tests.reference.at import averaged_down, smaller, unit
from tests.reference.vid import times
from tests.training.small import copied, same

STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (4, 3, 2)}
LARGER: features.Shapes = {"map": (4, 5, 3)}

sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)
grids = pytest.mark.parametrize("grid", [None, 2])


def head_of(feature: Tensor, seed: int) -> dict[str, nn.Module]:
    rng = torch.Generator().manual_seed(seed)
    head = nn.Linear(feature.shape[1], 3).double()
    head.weight.data = torch.randn(head.weight.shape, generator=rng).double()
    head.bias.data = torch.randn(3, generator=rng).double()
    return {"head": head}


def loss_of(case: Case, grid: int | None = None) -> Make:
    return made(
        partial(CATKD, grid=grid),
        case,
        student_modules=head_of(case.student.features["map"], 0),
        teacher_modules=head_of(case.teacher.features["map"], 1),
    )


@grids
@sizes
@pytest.mark.parametrize("check", features.WITHOUT_ADAPTERS)
def test_properties(
    check: properties.Check, teacher: features.Shapes, grid: int | None
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case, grid), case)


def reference(case: Case, weights: list[tuple[Any, Any]], grid: int | None) -> float:
    squares = []
    sides = [
        case.student.features["map"].tolist(),
        case.teacher.features["map"].tolist(),
    ]
    for samples in zip(*sides, strict=True):
        size = (grid, grid) if grid else smaller(samples[0][0], samples[1][0])
        units = []
        for sample, (weight, bias) in zip(samples, weights, strict=True):
            rows, columns = len(sample[0]), len(sample[0][0])
            scores = [
                [
                    times(weight, [channel[y][x] for channel in sample])
                    for x in range(columns)
                ]
                for y in range(rows)
            ]
            for k, b in enumerate(bias):
                grid_of_class = [
                    [scores[y][x][k] + b for x in range(columns)] for y in range(rows)
                ]
                units.append(unit(averaged_down(grid_of_class, *size)))
        classes = len(units) // 2
        for own, target in zip(units[:classes], units[classes:], strict=True):
            squares += [(a - b) ** 2 for a, b in zip(own, target, strict=True)]
    return math.fsum(squares) / len(squares)


@grids
@sizes
def test_agrees_with_reference(teacher: features.Shapes, grid: int | None) -> None:
    case = feature_case(STUDENT, teacher)
    heads: list[Any] = [
        head_of(case.student.features["map"], 0)["head"],
        head_of(case.teacher.features["map"], 1)["head"],
    ]
    weights = [(head.weight.tolist(), head.bias.tolist()) for head in heads]
    expected = reference(case, weights, grid)
    assert value_of(loss_of(case, grid), case).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_value_of_the_sheet() -> None:
    student, teacher = torch.tensor(sheet.STUDENT), torch.tensor(sheet.TEACHER)
    assert class_map_distance(student, teacher).item() == pytest.approx(
        0.329356, abs=1e-6
    )


def test_by_hand() -> None:
    # Two positions: (3, 4) is the unit (0.6, 0.8), the teacher's (0, 2) is (0, 1): 0.36 and 0.04.
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert class_map_distance(student, teacher).item() == pytest.approx(0.2)
    # First pooled, then made unit: of 3, 4 only the sign of the mean is left.
    assert class_map_distance(student, teacher, 1).item() == pytest.approx(0)


def test_the_mean_of_a_class_map_is_its_logit() -> None:
    feature = feature_case(STUDENT, TEACHER).student.features["map"]
    head: Any = head_of(feature, 0)["head"]
    maps = class_maps(feature, head.weight, head.bias)
    torch.testing.assert_close(maps.mean((2, 3)), head(feature.mean((2, 3))))


def test_minimum_where_both_networks_are_equal() -> None:
    case = feature_case(TEACHER, TEACHER)
    heads = head_of(case.teacher.features["map"], 1)
    make = made(CATKD, case, student_modules=heads, teacher_modules=heads)
    properties.minimum(make, Case(case.teacher, case.teacher, case.batch))


def test_gradients_reach_the_students_classifier_and_not_the_teachers() -> None:
    case = feature_case(STUDENT, TEACHER)
    own: Any = head_of(case.student.features["map"], 0)
    other: Any = head_of(case.teacher.features["map"], 1)
    loss: Any = made(CATKD, case, student_modules=own, teacher_modules=other)().double()
    teacher = change(case.teacher, leaf)
    student = change(case.student, leaf)
    torch.autograd.backward(loss(student, teacher, case.batch))
    assert own["head"].weight.grad.any()
    assert own["head"].bias.grad.any()
    assert student.features["map"].grad is not None
    assert other["head"].weight.grad is None
    assert teacher.features["map"].grad is None
    assert list(loss.parameters()) == []


def test_trains_residual_networks(tmp_path: Path) -> None:
    module = features.trains(partial(CATKD, weight=10.0), tmp_path)
    loss: Any = module.losses["own"]
    assert loss._student_head[0] is module.net.head
    assert set(loss.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("catkd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 600 * run.metrics["train_loss_catkd"], rel=1e-5
    )
    assert same(network_weights(features.checkpoint_of(run)), copied(run.module.net))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "CATKD: layer must be the role of a layer"),
        ({"head": ""}, "CATKD: head must be the role of a layer"),
        ({"grid": 0}, "CATKD: grid must be a whole number from 1 or null, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CATKD(**arguments)


def test_bad_heads_and_calls_before_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    teacher = features.probe(case.teacher, head_of(case.teacher.features["map"], 1))
    with pytest.raises(UserError, match="the student's layer 'head' is a NoneType"):
        CATKD().build(features.probe(case.student), teacher)
    with pytest.raises(UserError, match="CATKD needs a teacher"):
        CATKD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="CATKD has no adapters yet"):
        CATKD()(case.student, case.teacher, case.batch)
