from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.wkdf import WKDF, cell_bounds, gaussian_distance
from tests.losses import features, properties, response, sheet
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make
from tests.reference import wkdf as reference

STUDENT: features.Shapes = {"map": (2, 4, 3)}
TEACHER: features.Shapes = {"map": (3, 4, 3)}
LARGER: features.Shapes = {"map": (3, 7, 6)}
grids = pytest.mark.parametrize("grid", [1, 2])
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(case: Case, **arguments: Any) -> Make:
    return made(partial(WKDF, **arguments), case)


@grids
@sizes
@pytest.mark.parametrize("check", features.WITH_ADAPTERS)
def test_properties(
    check: properties.Check, teacher: features.Shapes, grid: int
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case, grid=grid), case)


@pytest.mark.parametrize("grid", [1, 2, 3])
@sizes
def test_agrees_with_reference(teacher: features.Shapes, grid: int) -> None:
    case = feature_case(STUDENT, teacher)
    loss: Any = loss_of(case, grid=grid, mean_weight=0.5)
    loss = loss().double().eval()
    own = loss.projector(case.student.features["map"])
    target = case.teacher.features["map"]
    expected = reference.distance(own.tolist(), target.tolist(), 0.5, grid)
    found = loss(case.student, case.teacher, case.batch)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    own = torch.tensor(sheet.STUDENT, dtype=torch.float64)
    target = torch.tensor(sheet.TEACHER, dtype=torch.float64)
    of_deviations = gaussian_distance(own, target, 0.0).item()
    assert of_deviations == pytest.approx(0.019861, abs=1e-6)
    whole = gaussian_distance(own, target, 4.0).item()
    assert whole == pytest.approx(0.269861, abs=1e-6)


def test_by_hand() -> None:
    """(0, 2) has mean 1 and variance 2, (5, 5) mean 5 and none: 3 * 16 and about 2."""
    case = case_of([[[[0.0, 2.0]]]], [[[[5.0, 5.0]]]], role="map")
    make = made(
        partial(WKDF, mean_weight=3.0),
        case,
        lambda loss: features.identical_connector(loss.projector),
    )
    deviations = math.sqrt(2 + 1e-5), math.sqrt(1e-5)
    expected = 3 * 16 + (deviations[0] - deviations[1]) ** 2
    assert properties.value_of(make, case).item() == pytest.approx(expected)


def test_order_of_positions_does_not_matter_within_a_cell() -> None:
    case = feature_case(TEACHER, TEACHER)
    own, target = case.student.features["map"], case.teacher.features["map"]

    def distance(maps: Tensor, grid: int) -> float:
        return gaussian_distance(maps, target, grid=grid).item()

    turned = own.flip(2, 3)
    assert distance(turned, 1) == pytest.approx(distance(own, 1))
    assert distance(turned, 2) != pytest.approx(distance(own, 2))


@grids
def test_zero_where_both_maps_agree(grid: int) -> None:
    maps = feature_case(TEACHER, TEACHER).teacher.features["map"].requires_grad_()
    value = gaussian_distance(maps, maps.detach(), grid=grid)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, maps)
    assert not gradient.any()
    assert gaussian_distance(1.1 * maps, maps, grid=grid).item() > 0


def test_cells_are_those_of_adaptive_pooling() -> None:
    assert cell_bounds(7, 3) == [(0, 3), (2, 5), (4, 7)]
    maps = feature_case(LARGER, LARGER).student.features["map"]
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 4)
    means = [
        maps[:, :, top:bottom, left:right].mean((2, 3))
        for top, bottom in cell_bounds(7, 4)
        for left, right in cell_bounds(6, 4)
    ]
    torch.testing.assert_close(torch.stack(means, 2), pooled.flatten(2))


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(WKDF, tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("wkdf", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 0.08 * run.metrics["train_loss_wkdf"], rel=1e-5
    )
    loss = response.shipped("wkdf")["wkdf"]
    assert isinstance(loss, WKDF)
    assert (loss.mean_weight, loss.grid) == (4.0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "WKDF: layer must be the role of a layer"),
        ({"mean_weight": -1}, "WKDF: mean_weight must be a finite number"),
        ({"grid": 0}, "WKDF: grid must be a whole number of at least 1, got 0"),
        ({"grid": 1.5}, "WKDF: grid must be a whole number of at least 1, got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        WKDF(**arguments)


def test_bad_maps_and_calls_before_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="WKDF needs a teacher"):
        WKDF().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="WKDF has no adapters yet"):
        WKDF()(case.student, case.teacher, case.batch)
    single = feature_case({"map": (3, 1, 1)}, TEACHER)
    with pytest.raises(UserError, match="the student's layer 'map' has 1 x 1 positio"):
        loss_of(single)()
    with pytest.raises(UserError, match="too few for a deviation in each of 4 x 4 cel"):
        loss_of(case, grid=4)()
