from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.cwd import CWD, channel_divergence
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import cwd as reference
from tests.reference.fitnets import convolved

SAME: features.Shapes = {"map": (3, 3, 2)}
STUDENT: features.Shapes = {"map": (2, 3, 2)}
LARGER: features.Shapes = {"map": (3, 5, 4)}


def loss_of(case: Case, temperature: float = 4.0) -> Make:
    return made(partial(CWD, temperature=temperature), case)


@pytest.mark.parametrize("check", features.WITHOUT_ADAPTERS)
def test_properties(check: properties.Check) -> None:
    case = feature_case(SAME, SAME)
    check(loss_of(case), case)


@pytest.mark.parametrize(
    "check",
    [
        *(c for c in features.WITH_ADAPTERS if c is not properties.minimum_at_teacher),
        properties.batch_size,
    ],
)
def test_properties_with_a_convolution(check: properties.Check) -> None:
    case = feature_case(STUDENT, LARGER)
    if check is not features.reaches_adapters:
        check(loss_of(case), case)
        return
    # A constant added to a channel leaves its distribution: the bias gets no gradient.
    loss: Any = loss_of(case)().double()
    torch.autograd.backward(loss(case.student, case.teacher, case.batch))
    assert loss.adapter.weight.grad.any()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("student", [SAME, STUDENT], ids=["direct", "convolution"])
@pytest.mark.parametrize("teacher", [SAME, LARGER], ids=["one size", "two sizes"])
def test_agrees_with_reference(
    student: features.Shapes, teacher: features.Shapes, temperature: float
) -> None:
    case = feature_case(student, teacher)
    loss: Any = loss_of(case, temperature)().double()
    maps = case.student.features["map"].tolist()
    if loss.adapter is not None:
        weight, bias = loss.adapter.weight.tolist(), loss.adapter.bias.tolist()
        maps = [convolved(sample, weight, bias) for sample in maps]
    hints = case.teacher.features["map"].tolist()
    size = len(hints[0][0]), len(hints[0][0][0])
    maps = [
        [reference.interpolated(channel, *size) for channel in sample]
        for sample in maps
    ]
    expected = reference.distance(maps, hints, temperature)
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.609597), (4.0, 0.666170)]
)
def test_value_of_the_sheet(temperature: float, expected: float) -> None:
    case = case_of(sheet.STUDENT, sheet.TEACHER, role="map")
    assert value_of(loss_of(case, temperature), case).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_by_hand() -> None:
    # At temperature 2 the student's channel (0, 0) is uniform and the teacher's (2 ln 3, 0) is
    # (3/4, 1/4): 4 times (3/4 ln 3/2 + 1/4 ln 1/2). The second channel agrees up to a constant.
    case = case_of(
        [[[[0.0, 0.0]], [[1.0, 2.0]]]],
        [[[[2 * math.log(3), 0.0]], [[5.0, 6.0]]]],
        role="map",
    )
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert value_of(loss_of(case, 2.0), case).item() == pytest.approx(expected)


def test_positions_that_are_ruled_out_leave_the_value() -> None:
    """Twice the positions, the new ones impossible on both sides: no mean over positions."""
    case = feature_case(SAME, SAME)
    own, target = case.student.features["map"], case.teacher.features["map"]
    value = channel_divergence(own, target)
    outside = torch.full_like(own, -1e4)
    wider = channel_divergence(
        torch.cat([own, outside], 3), torch.cat([target, outside], 3)
    )
    assert wider.item() == pytest.approx(value.item())


def test_trains_residual_networks(tmp_path: Path) -> None:
    module = features.residual(CWD(weight=3.0))
    before = {name: p.clone() for name, p in module.losses.named_parameters()}
    features.fitted(module, epochs=2)
    weight = "own.adapter.weight"
    assert not torch.equal(
        dict(module.losses.named_parameters())[weight], before[weight]
    )


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("cwd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 3 * run.metrics["train_loss_cwd"], rel=1e-5
    )
    assert "losses.cwd.adapter.weight" in features.checkpoint_of(run)["state_dict"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "CWD: layer must be the role of a layer"),
        ({"temperature": 0}, "CWD: temperature must be a finite number greater than 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CWD(**arguments)


def test_needs_a_teacher_build_and_positions() -> None:
    case = feature_case(STUDENT, SAME)
    with pytest.raises(UserError, match="CWD needs a teacher"):
        CWD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="CWD has no adapters yet"):
        CWD()(case.student, case.teacher, case.batch)
    single = feature_case(STUDENT, {"map": (3, 1, 1)})
    with pytest.raises(
        UserError, match="CWD: the teacher's layer 'map' has one position"
    ):
        loss_of(single)()
