from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.ab import AB, boundary_distance
from kd_lightning.models import CIFARResNet
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, identical_connector, made
from tests.losses.properties import Case, Make, gradients_of
from tests.reference import ab as reference
from tests.reference.fitnets import batch_normalized, convolved
from tests.training.small import last

STUDENT: features.Shapes = {"preact1": (2, 3, 2), "preact2": (3, 2, 2)}
TEACHER: features.Shapes = {"preact1": (3, 3, 2), "preact2": (2, 2, 2)}
LARGER: features.Shapes = {"preact1": (3, 5, 1), "preact2": (2, 4, 3)}


def loss_of(case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(partial(AB, list(case.student.features)), case, prepare)


@pytest.mark.parametrize("teacher", [TEACHER, LARGER], ids=["one size", "two sizes"])
@pytest.mark.parametrize("check", features.WITH_ADAPTERS)
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case), case)


def test_agrees_with_reference() -> None:
    for seed in range(3):
        case = feature_case(STUDENT, TEACHER, seed=seed)
        loss: Any = loss_of(case)().double()
        expected = 0.0
        for place, role in enumerate(STUDENT):
            weight = loss.connectors[place][0].weight.tolist()
            maps = [
                convolved(sample, weight, [0.0] * len(weight))
                for sample in case.student.features[role].tolist()
            ]
            hints = case.teacher.features[role].tolist()
            term = reference.distance(batch_normalized(maps), hints)
            expected += term / 2 if place == 0 else term
        value = loss(case.student, case.teacher, case.batch)
        assert value.item() == pytest.approx(0.003 * expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    student = torch.tensor([0.5, -2.0, -0.3, 2.0], dtype=torch.float64).view(1, 1, 2, 2)
    teacher = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2)
    assert boundary_distance(student, teacher).item() == pytest.approx(18.74)
    # A teacher after its ReLU says the same.
    assert boundary_distance(student, teacher.relu()).item() == pytest.approx(18.74)


def test_by_hand() -> None:
    # Margin 1 on two samples: the first is at 0 and should be active, (0 - 1)^2; its other value is
    # beyond the margin. The second sample's values are both beyond.
    case = case_of(
        [[[[0.0, -3.0]]], [[[1.5, -1.0]]]], [[[[0.1, -0.1]]], [[[9.0, 0.0]]]]
    )

    def identical(loss: Any) -> None:
        identical_connector(loss.connectors[0])

    value, (_, gradient) = gradients_of(loss_of(case, identical), case)
    assert value.item() == pytest.approx(0.003 / 2)
    assert gradient.flatten().tolist() == pytest.approx([-0.003, 0.0, 0.0, 0.0])


def test_minimum_is_beyond_the_margin_on_the_teachers_side() -> None:
    case = feature_case({"preact1": (2, 3, 3)}, {"preact1": (2, 3, 3)})
    teacher = case.teacher.features["preact1"]
    side = torch.where(teacher > 0, 1.0, -1.0).double()
    for margin in (0.5, 1.0, 2.0):
        assert boundary_distance(margin * side, teacher, margin) == 0
        assert boundary_distance(7 * side, teacher, margin) == 0
        assert boundary_distance(0.99 * margin * side, teacher, margin) > 0
    assert boundary_distance(teacher, teacher) > 0


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(AB, tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("ab", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_ab"], rel=1e-5
    )


def test_two_stages(tmp_path: Path) -> None:
    """The boundaries alone, then cross-entropy from there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = dict(
            CIFARResNet(8, input_shape=[1, 8, 8], num_classes=10).named_parameters()
        )
    first = features.run_method("ab_init", tmp_path / "init")
    assert set(first.module.losses) == {"ab"}
    learned = dict(first.module.net.named_parameters())
    changed = {
        name.partition(".")[0]
        for name in learned
        if (learned[name] != start[name]).any()
    }
    assert changed == {"conv", "bn", "stage1", "stage2", "stage3"}
    small = "--model.optimizer.init_args.lr=1.0e-5"
    second = features.run_method(
        "kd", tmp_path / "kd", f"--model.init_from={last(first)}", small
    )
    trained = dict(second.module.net.named_parameters())
    name = "stage2.0.conv1.weight"
    assert (trained[name] - learned[name]).norm() < 0.1 * (
        start[name] - learned[name]
    ).norm()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "AB: layers must list different roles"),
        ({"margin": 0}, "AB: margin must be a finite number greater than 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AB(**arguments)


def test_needs_a_teacher_build_and_maps() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="AB needs a teacher"):
        AB(list(STUDENT)).build(features.probe(case.student), None)
    with pytest.raises(UserError, match="AB has no adapters yet"):
        AB(list(STUDENT))(case.student, case.teacher, case.batch)
    vectors = feature_case({"a": (2,)}, {"a": (2,)})
    with pytest.raises(UserError, match=r"AB reads maps \(B, C, H, W\)"):
        loss_of(vectors)()
