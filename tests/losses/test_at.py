from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.at import AT, attention_loss
from kd_lightning.types import Output
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, gradients_of, value_of
from tests.reference import at as reference

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
TWO: features.Shapes = {"stage1": (2, 3, 2), "stage2": (1, 2, 2)}
WIDER: features.Shapes = {"stage1": (3, 3, 2), "stage2": (2, 2, 2)}
LARGER: features.Shapes = {"stage1": (3, 5, 1), "stage2": (2, 4, 3)}
"""Taller and wider, taller and less wide: neither side is the larger one throughout."""

variants = pytest.mark.parametrize("convention", CONVENTIONS)
sizes = pytest.mark.parametrize(
    "teacher", [WIDER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(convention: Convention, case: Case) -> Make:
    return made(partial(AT, list(case.student.features), convention), case)


@variants
@sizes
@pytest.mark.parametrize(
    "check", [*properties.ALL, properties.batch_size, features.stays_finite]
)
def test_properties(
    check: properties.Check, teacher: features.Shapes, convention: Convention
) -> None:
    case = feature_case(TWO, teacher)
    check(loss_of(convention, case), case)


@variants
def test_minimum_at_the_teacher(convention: Convention) -> None:
    case = feature_case(TWO, TWO)
    properties.minimum(
        loss_of(convention, case), Case(case.teacher, case.teacher, case.batch)
    )


@variants
@sizes
def test_agrees_with_reference(
    teacher: features.Shapes, convention: Convention
) -> None:
    formula = {"paper": reference.paper, "benchmark": reference.benchmark}[convention]
    for seed in range(3):
        case = feature_case(TWO, teacher, seed=seed)
        ours, theirs = case.student.features, case.teacher.features
        expected = math.fsum(
            formula(ours[role].tolist(), theirs[role].tolist()) for role in TWO
        )
        assert value_of(loss_of(convention, case), case).item() == pytest.approx(
            expected, rel=1e-9
        )


# Sample 0: channels (1, r2) and (r2, r2) have squares (1, 2) and (2, 2), sums (3, 4), length 5: q = (0.6, 0.8). The teacher's
# one channel (2, r3) gives (4, 3): q = (0.8, 0.6). They differ by (-0.2, 0.2), of length 0.2 r2. Sample 1 agrees: q = (1, 0).
# Paper: half the length, 0.1 r2, mean of two samples 0.05 r2. Benchmark: squares 0.04, 0.04, 0, 0, mean 0.02.
@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 0.05 * math.sqrt(2)), ("benchmark", 0.02)]
)
def test_by_hand(convention: Convention, expected: float) -> None:
    root = math.sqrt(2)
    student = [[[[1.0, root]], [[root, root]]], [[[5.0, 0.0]], [[1.0, 0.0]]]]
    case = case_of(student, [[[[2.0, math.sqrt(3)]]], [[[-7.0, 0.0]]]])
    assert value_of(loss_of(convention, case), case).item() == pytest.approx(expected)


@variants
def test_the_scale_of_features_is_free(convention: Convention) -> None:
    case = feature_case(TWO, WIDER)
    ours = {role: 30 * feature for role, feature in case.student.features.items()}
    value = AT(list(TWO), convention)(
        Output(case.student.logits, ours), case.teacher, case.batch
    )
    assert value.item() == pytest.approx(
        value_of(loss_of(convention, case), case).item()
    )


@variants
def test_zeros_have_no_attention_and_no_gradient(convention: Convention) -> None:
    case = feature_case(TWO, WIDER)
    blank = Output(
        case.student.logits,
        {role: torch.zeros_like(f) for role, f in case.student.features.items()},
    )
    value, gradients = gradients_of(
        loss_of(convention, case), Case(blank, case.teacher, case.batch)
    )
    # q_S = 0 and |q_T| = 1: half a length of 1 for each layer; or 1 over the 6 and the 4 positions.
    assert value.item() == pytest.approx(
        1.0 if convention == "paper" else 1 / 6 + 1 / 4
    )
    assert not any(gradient.any() for gradient in gradients)


@variants
def test_channels_last_changes_nothing(convention: Convention) -> None:
    case = feature_case(TWO, WIDER)
    s, t = case.student.features["stage1"], case.teacher.features["stage1"]
    ours, theirs = (x.contiguous(memory_format=torch.channels_last) for x in (s, t))
    torch.testing.assert_close(
        attention_loss(ours, theirs, convention), attention_loss(s, t, convention)
    )


def test_can_be_called_without_build() -> None:
    case = feature_case(TWO, WIDER)
    assert AT(list(TWO))(case.student, case.teacher, case.batch) > 0
    assert list(AT().parameters()) == []


@variants
def test_trains_residual_networks(convention: Convention, tmp_path: Path) -> None:
    features.trains(partial(AT, convention=convention, weight=10.0), tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("at", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 1000 * run.metrics["train_loss_at"]
    )
    loss = run.module.losses["at"]
    assert isinstance(loss, AT)
    assert (loss.roles, loss.convention) == (
        ["stage1", "stage2", "stage3"],
        "benchmark",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "layers must list different roles"),
        ({"layers": "stage1"}, "layers must list different roles"),
        ({"layers": ["stage1", "stage1"]}, "layers must list different roles"),
        ({"layers": ["stage1", ""]}, "each of layers must be the role of a layer"),
        (
            {"convention": "papers"},
            "convention must be 'paper' or 'benchmark', got 'papers'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AT(**arguments)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (3,),
            (3,),
            r"AT reads maps \(B, C, H, W\); the student's layer 'a' gives \[3\] per sample",
        ),
        (
            (3, 2, 2),
            (3, 4),
            r"AT reads maps \(B, C, H, W\); the teacher's layer 'a' gives \[3, 4\] per sample",
        ),
        (
            (3, 2, 2),
            (3, 1, 1),
            "a map of one position is always the same when normalized; leave out the layer 'a'",
        ),
    ],
)
def test_layers_without_attention_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    case = feature_case({"a": student}, {"a": teacher})
    with pytest.raises(UserError, match=words):
        AT(["a"]).build(features.probe(case.student), features.probe(case.teacher))


def test_needs_a_teacher_and_its_features() -> None:
    case = feature_case(TWO, WIDER)
    for call in (
        lambda: AT().build(features.probe(case.student), None),
        lambda: AT()(case.student, None, case.batch),
    ):
        with pytest.raises(UserError, match="AT needs a teacher"):
            call()
    with pytest.raises(UserError, match="AT: the output holds no feature 'stage3'"):
        AT()(case.student, case.teacher, case.batch)


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    case = feature_case(TWO, WIDER)
    student: Any = features.probe(case.student)
    student.output.features["stage1"] = (student.output.features["stage1"], None)
    with pytest.raises(
        UserError, match="AT: the student's layer 'stage1' gives a tuple, not a tensor"
    ):
        AT(list(TWO)).build(student, features.probe(case.teacher))
