from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.fsp import FSP
from kd_lightning.models import CIFARResNet
from kd_lightning.types import Output
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import fsp as reference

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
STUDENT: features.Shapes = {"stem": (2, 4, 3), "stage1": (3, 3, 3), "stage2": (2, 2, 2)}
LARGER: features.Shapes = {"stem": (2, 5, 4), "stage1": (3, 2, 6), "stage2": (2, 3, 1)}

variants = pytest.mark.parametrize("convention", CONVENTIONS)


def loss_of(convention: Convention, case: Case) -> Make:
    return made(partial(FSP, list(case.student.features), convention), case)


@variants
@pytest.mark.parametrize("teacher", [STUDENT, LARGER], ids=["one size", "two sizes"])
@pytest.mark.parametrize("check", features.WITHOUT_ADAPTERS)
def test_properties(
    check: properties.Check, teacher: features.Shapes, convention: Convention
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(convention, case), case)


@variants
def test_agrees_with_reference(convention: Convention) -> None:
    for seed in range(3):
        case = feature_case(STUDENT, LARGER, seed=seed)
        student = [feature.tolist() for feature in case.student.features.values()]
        teacher = [feature.tolist() for feature in case.teacher.features.values()]
        expected = reference.distance(student, teacher, paper=convention == "paper")
        assert value_of(loss_of(convention, case), case).item() == pytest.approx(
            expected, rel=1e-9
        )


def two_layers(lower: tuple[Any, Any], upper: tuple[Any, Any]) -> Case:
    first = case_of(*lower, role="stage1")
    second = case_of(*upper, role="stage2")
    for output, more in (
        (first.student, second.student),
        (first.teacher, second.teacher),
    ):
        output.features.update(more.features)
    return first


@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 0.125), ("benchmark", 0.03125)]
)
def test_value_of_the_sheet(convention: Convention, expected: float) -> None:
    case = two_layers(
        (sheet.STUDENT, sheet.TEACHER), (sheet.NEXT_STUDENT, sheet.NEXT_TEACHER)
    )
    assert value_of(loss_of(convention, case), case).item() == pytest.approx(expected)


# The lower map (1, 3) becomes its maximum 3 or its mean 2; times the upper map of one position, 2.
# The teacher's flow is 1 * 2 = 2. The second sample agrees. Squares: (6 - 2)^2 or (4 - 2)^2.
@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 8.0), ("benchmark", 2.0)]
)
def test_by_hand(convention: Convention, expected: float) -> None:
    lower = ([[[[1.0, 3.0]]], [[[1.0, 1.0]]]], [[[[1.0, 1.0]]], [[[1.0, 1.0]]]])
    upper = ([[[[2.0]]], [[[1.0]]]], [[[[2.0]]], [[[1.0]]]])
    case = two_layers(lower, upper)
    assert value_of(loss_of(convention, case), case).item() == pytest.approx(expected)


@variants
def test_a_flow_is_between_layers_of_one_network(convention: Convention) -> None:
    """Both signs of both layers changed leave every product, and the loss."""
    case = feature_case(STUDENT, STUDENT)
    if convention == "paper":
        case = feature_case(
            dict.fromkeys(STUDENT, (2, 2, 2)), dict.fromkeys(STUDENT, (2, 2, 2))
        )
    turned = {role: -feature for role, feature in case.teacher.features.items()}
    same = Case(Output(case.teacher.logits, turned), case.teacher, case.batch)
    assert value_of(loss_of(convention, case), same).item() == pytest.approx(
        0, abs=1e-12
    )


def pair(width: int) -> str:
    return f"--model.teacher.network.init_args.width={width}"


def test_trains_residual_networks_of_equal_channels() -> None:
    with pytest.raises(
        UserError, match="FSP needs equal channels; at the layer 'stem'"
    ):
        features.residual(FSP())


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("fsp", tmp_path, pair(1))
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_fsp"], rel=1e-5
    )
    loss = run.module.losses["fsp"]
    assert isinstance(loss, FSP)
    assert (loss.roles, loss.convention) == (
        ["stem", "stage1", "stage2", "stage3"],
        "benchmark",
    )


def test_initial_stage_trains_the_stages_alone(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = dict(
            CIFARResNet(8, input_shape=[1, 8, 8], num_classes=10).named_parameters()
        )
    run = features.run_method("fsp_init", tmp_path, pair(1))
    assert set(run.module.losses) == {"fsp"}
    changed = {
        name.partition(".")[0]
        for name, parameter in run.module.net.named_parameters()
        if not torch.equal(parameter, start[name])
    }
    assert changed == {"conv", "bn", "stage1", "stage2", "stage3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "FSP: layers must list different roles"),
        (
            {"layers": ["stage1"]},
            r"FSP: layers must name two roles or more, got \['stage1'\]",
        ),
        (
            {"convention": "code"},
            "FSP: convention must be 'paper' or 'benchmark', got 'code'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FSP(**arguments)


def test_needs_a_teacher_and_maps() -> None:
    case = feature_case(STUDENT, STUDENT)
    with pytest.raises(UserError, match="FSP needs a teacher"):
        FSP()(case.student, None, case.batch)
    vectors = feature_case({"a": (2,), "b": (2,)}, {"a": (2,), "b": (2,)})
    with pytest.raises(UserError, match=r"FSP reads maps \(B, C, H, W\)"):
        loss_of("paper", vectors)()
