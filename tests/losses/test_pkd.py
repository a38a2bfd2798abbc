from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.losses.pkd import PKD
from tests.losses import features, properties
from tests.losses.features import made, probe
from tests.losses.properties import Case
from tests.losses.tokens import run_method, token_case
from tests.reference import tokens as reference

SHAPES: features.Shapes = {"states1": (4, 3), "states2": (4, 5)}
two = partial(PKD, ["states1", "states2"])


@pytest.mark.parametrize(
    "check", [*properties.ALL, properties.batch_size, features.stays_finite]
)
def test_properties(check: properties.Check) -> None:
    case = token_case(SHAPES, SHAPES)
    check(made(two, case), case)


def test_minimum_at_the_teacher() -> None:
    case = token_case({"states1": (1, 6)}, {"states1": (1, 6)})
    properties.minimum(PKD, Case(case.teacher, case.teacher, case.batch))


def test_agrees_with_reference_and_reads_the_first_token_alone() -> None:
    case = token_case(SHAPES, {"states1": (7, 3), "states2": (7, 5)}, seed=3)
    s, t = (
        {role: f.tolist() for role, f in side.features.items()}
        for side in (case.student, case.teacher)
    )
    expected = sum(reference.patient(s[role], t[role]) for role in SHAPES)
    value, (_, first, _) = properties.gradients_of(two, case)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert first[:, 0].any()
    assert not first[:, 1:].any()


def test_by_hand() -> None:
    # Directions (1, 0) and (0, 1), whatever their lengths: 1 + 1. The second sentence agrees, and halves it.
    case = features.case_of(
        [[[3.0, 0.0]], [[2.0, 2.0]]], [[[0.0, 7.0]], [[0.5, 0.5]]], "states1"
    )
    assert properties.value_of(PKD, case).item() == pytest.approx(1.0)


def test_scale_does_not_matter() -> None:
    case = token_case(SHAPES, SHAPES)
    longer = Case(
        properties.change(case.student, lambda x: 5 * x), case.teacher, case.batch
    )
    assert properties.value_of(two, longer).item() == pytest.approx(
        properties.value_of(two, case).item()
    )


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (4, 3),
            (4, 5),
            "student's layer 'states1' has 3 numbers per token, the teacher's 5; they must agree",
        ),
        (
            (3,),
            (3,),
            r"PKD reads states \(B, L, H\) of a transformer; the student's layer 'states1' gives \[3\]",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    case = token_case({"states1": student}, {"states1": teacher})
    with pytest.raises(UserError, match=words):
        PKD().build(probe(case.student), probe(case.teacher))


@pytest.mark.parametrize("layers", ["states1", [], ["states1", "states1"]])
def test_bad_arguments(layers: Any) -> None:
    with pytest.raises(UserError, match="PKD: layers must list different roles"):
        PKD(layers)


def test_needs_a_teacher() -> None:
    case = token_case(SHAPES, SHAPES)
    with pytest.raises(UserError, match="PKD needs a teacher"):
        PKD().build(probe(case.student), None)
    with pytest.raises(UserError, match="PKD needs a teacher"):
        PKD()(case.student, None, case.batch)


def test_method_file(tmp_path: Path) -> None:
    metrics = run_method("pkd", tmp_path).metrics
    parts = (
        0.5 * metrics["train_loss_ce"]
        + 0.5 * metrics["train_loss_kd"]
        + 100 * metrics["train_loss_pkd"]
    )
    assert metrics["train_loss"] == pytest.approx(parts, rel=1e-5)
    assert metrics["train_loss_pkd"] > 0
