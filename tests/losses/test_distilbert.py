from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses import Probe
from kd_lightning.losses.distilbert import DistilBERT
from kd_lightning.spec import Spec, Vocabulary
from tests.losses import features, properties
from tests.losses.features import made, probe
from tests.losses.properties import Case
from tests.losses.tokens import LENGTHS, padding_is_left_out, run_method, token_case
from tests.reference import tokens as reference

SHAPES: features.Shapes = {"states2": (4, 5)}


@pytest.mark.parametrize(
    "check", [*properties.ALL, properties.batch_size, features.stays_finite]
)
def test_properties(check: properties.Check) -> None:
    case = token_case(SHAPES, SHAPES)
    check(made(DistilBERT, case), case)


def test_padding_is_left_out() -> None:
    padding_is_left_out(DistilBERT, token_case(SHAPES, SHAPES, LENGTHS), LENGTHS)


def test_minimum_at_the_teacher() -> None:
    case = token_case(SHAPES, SHAPES)
    properties.minimum(DistilBERT, Case(case.teacher, case.teacher, case.batch))


@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4, 4, 4]])
def test_agrees_with_reference(lengths: list[int]) -> None:
    case = token_case(SHAPES, SHAPES, lengths, seed=5)
    s, t = (side.features["states2"].tolist() for side in (case.student, case.teacher))
    value = properties.value_of(DistilBERT, case).item()
    assert value == pytest.approx(reference.cosine(s, t, lengths), rel=1e-9)


def test_by_hand() -> None:
    # At right angles: 1; opposite: 2; the mean of both tokens is 1.5. The second sentence agrees, and halves it.
    student = [[[2.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]]]
    teacher = [[[0.0, 1.0], [-2.0, -2.0]], [[4.0, 0.0], [0.0, 1.0]]]
    assert properties.value_of(
        DistilBERT, features.case_of(student, teacher, "states2")
    ).item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (4, 3),
            (4, 5),
            "student's layer 'states2' has 3 numbers per token, the teacher's 5; they must agree",
        ),
        (
            (4, 3),
            (5, 3),
            "student's layer 'states2' has 4 tokens, the teacher's 5; they must agree",
        ),
        ((2, 4, 4), (2, 4, 4), r"DistilBERT reads states \(B, L, H\) of a transformer"),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    case = token_case({"states2": student}, {"states2": teacher})
    with pytest.raises(UserError, match=words):
        DistilBERT().build(probe(case.student), probe(case.teacher))


@pytest.mark.parametrize("layer", ["", ["states1"]])
def test_bad_arguments(layer: Any) -> None:
    with pytest.raises(
        UserError, match="DistilBERT: layer must be the role of a layer"
    ):
        DistilBERT(layer)


def test_needs_a_teacher_and_one_tokenizer() -> None:
    case = token_case(SHAPES, SHAPES)
    with pytest.raises(UserError, match="DistilBERT needs a teacher"):
        DistilBERT().build(probe(case.student), None)
    with pytest.raises(UserError, match="DistilBERT needs a teacher"):
        DistilBERT()(case.student, None, case.batch)
    tokens = Vocabulary(1, pad=0, max_length=4, sha256="first")
    other = Vocabulary(2, pad=0, max_length=4, sha256="second")
    spec = Spec("sentences", vocabulary=tokens, teacher_vocabulary=other)
    apart = Probe(probe(case.student).output, spec=spec)
    with pytest.raises(UserError, match="DistilBERT compares tokens one by one"):
        DistilBERT().build(apart, probe(case.teacher))
    same = Probe(apart.output, spec=replace(spec, teacher_vocabulary=tokens))
    DistilBERT().build(same, probe(case.teacher))


def test_method_file(tmp_path: Path) -> None:
    run = run_method("distilbert", tmp_path)
    parts = (
        2 * run.metrics["train_loss_ce"]
        + 5 * run.metrics["train_loss_kd"]
        + run.metrics["train_loss_distilbert"]
    )
    assert run.metrics["train_loss"] == pytest.approx(parts, rel=1e-5)
    assert 0 < run.metrics["train_loss_distilbert"] < 2
    assert torch.isfinite(torch.tensor(run.metrics["val_nll"]))
