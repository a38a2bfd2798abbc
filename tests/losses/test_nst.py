from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.nst import NST
from kd_lightning.types import Output
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, gradients_of, value_of
from tests.reference import nst as reference

STUDENT: features.Shapes = {"stage1": (2, 3, 2), "stage2": (3, 2, 2)}
WIDER: features.Shapes = {"stage1": (3, 3, 2), "stage2": (2, 2, 2)}
LARGER: features.Shapes = {"stage1": (3, 5, 1), "stage2": (2, 4, 3)}

sizes = pytest.mark.parametrize(
    "teacher", [WIDER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(case: Case) -> Make:
    return made(partial(NST, list(case.student.features)), case)


@sizes
@pytest.mark.parametrize("check", features.WITHOUT_ADAPTERS)
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(
        STUDENT, STUDENT if check is properties.minimum_at_teacher else teacher
    )
    check(loss_of(case), case)


@sizes
def test_agrees_with_reference(teacher: features.Shapes) -> None:
    for seed in range(3):
        case = feature_case(STUDENT, teacher, seed=seed)
        terms = [
            reference.distance(
                case.student.features[role].tolist(),
                case.teacher.features[role].tolist(),
            )
            for role in STUDENT
        ]
        assert value_of(loss_of(case), case).item() == pytest.approx(
            math.fsum(terms), rel=1e-9
        )


def test_value_of_the_sheet() -> None:
    case = case_of(sheet.STUDENT, sheet.TEACHER)
    assert value_of(loss_of(case), case).item() == pytest.approx(0.45)


def test_by_hand() -> None:
    # One channel each: (3, 4) has the direction (0.6, 0.8), the teacher's (1, 0). k(s, s) = k(t, t)
    # = 1 and k(s, t) = 0.36, so 2 - 0.72. The second sample agrees up to a factor.
    case = case_of([[[[3.0, 4.0]]], [[[0.0, 2.0]]]], [[[[1.0, 0.0]]], [[[0.0, -5.0]]]])
    assert value_of(loss_of(case), case).item() == pytest.approx(1.28 / 2)


def test_order_and_scale_of_channels_are_free() -> None:
    case = feature_case(STUDENT, WIDER)
    changed = {
        role: -7 * feature.flip(1) for role, feature in case.student.features.items()
    }
    value = NST(list(STUDENT))(
        Output(case.student.logits, changed), case.teacher, case.batch
    )
    assert value.item() == pytest.approx(value_of(loss_of(case), case).item())


def test_zeros_select_nothing_and_get_no_gradient() -> None:
    case = feature_case({"stage2": (2, 2, 2)}, {"stage2": (2, 2, 2)})
    blank = Output(case.student.logits, {"stage2": torch.zeros(4, 2, 2, 2).double()})
    value, gradients = gradients_of(
        loss_of(case), Case(blank, case.teacher, case.batch)
    )
    assert value > 0  # the teacher's own term
    assert not any(gradient.any() for gradient in gradients)


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(partial(NST, weight=10.0), tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("nst", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 50 * run.metrics["train_loss_nst"]
    )
    assert run.module.losses["nst"].roles == ["stage1", "stage2", "stage3"]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="NST: layers must list different roles"):
        NST([])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            (3,),
            r"NST reads maps \(B, C, H, W\); the student's layer 'a' gives \[3\] per sample",
        ),
        (
            (3, 1, 1),
            "a map of one position are equal when normalized; leave out the layer 'a'",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(shape: tuple[int, ...], words: str) -> None:
    case: Any = feature_case({"a": shape}, {"a": (2, 2, 2)})
    with pytest.raises(UserError, match=words):
        NST(["a"]).build(features.probe(case.student), features.probe(case.teacher))


def test_needs_a_teacher() -> None:
    case = feature_case(STUDENT, WIDER)
    with pytest.raises(UserError, match="NST needs a teacher"):
        NST().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="NST needs a teacher"):
        NST()(case.student, None, case.batch)
