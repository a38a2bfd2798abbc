from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses import Probe
from kd_lightning.losses.tinybert import TinyBERT
from kd_lightning.spec import Spec, Vocabulary
from tests.losses import features, properties
from tests.losses.features import made, probe
from tests.losses.properties import Case
from tests.losses.tokens import (
    LENGTHS,
    masked,
    padding_is_left_out,
    run_method,
    token_case,
)
from tests.reference import tokens as reference

STUDENT: features.Shapes = {"states1": (4, 3), "scores1": (2, 4, 4)}
TEACHER: features.Shapes = {"states1": (4, 5), "scores1": (2, 4, 4)}

one = partial(TinyBERT, ["states1"], ["scores1"])

PROPERTIES = [
    *(check for check in properties.ALL if check is not properties.half_precision),
    partial(properties.half_precision, rtol=0.05),
    properties.batch_size,
    features.stays_finite,
    features.reaches_adapters,
    features.half_adapters,
]


@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(check: properties.Check) -> None:
    case = token_case(STUDENT, TEACHER)
    check(made(one, case), case)


def test_padding_is_left_out() -> None:
    case = token_case(STUDENT, TEACHER, LENGTHS)
    padding_is_left_out(made(one, case), case, LENGTHS)


def identical(loss: Any) -> None:
    for layer in loss.maps:
        layer.weight = nn.Parameter(torch.eye(layer.in_features, dtype=torch.float64))


@pytest.mark.parametrize("lengths", [None, [4, 4, 4, 4]])
def test_minimum_at_the_teacher(lengths: list[int] | None) -> None:
    case = token_case(STUDENT, STUDENT, lengths)
    properties.minimum(
        made(one, case, identical), Case(case.teacher, case.teacher, case.batch)
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4, 4, 4]])
def test_agrees_with_reference(lengths: list[int], shared: bool) -> None:
    ours = {
        "states0": (4, 3),
        "states1": (4, 3),
        "scores1": (2, 4, 4),
        "scores2": (1, 4, 4),
    }
    theirs = {
        "states0": (4, 5),
        "states1": (4, 5),
        "scores1": (2, 4, 4),
        "scores2": (1, 4, 4),
    }
    case = token_case(ours, theirs, lengths)
    loss = made(
        partial(TinyBERT, ["states0", "states1"], ["scores1", "scores2"], shared), case
    )().double()
    assert isinstance(loss, TinyBERT)
    maps = [layer.state_dict()["weight"].tolist() for layer in loss.maps]
    assert (maps[0] == maps[1]) == shared
    assert len(list(loss.parameters())) == 1 + (not shared)
    s, t = (
        {role: f.tolist() for role, f in side.features.items()}
        for side in (case.student, case.teacher)
    )
    expected = sum(
        reference.states([reference.mapped(h, w) for h in s[role]], t[role], lengths)
        for role, w in zip(("states0", "states1"), maps, strict=True)
    ) + sum(
        reference.scores(s[role], t[role], lengths) for role in ("scores1", "scores2")
    )
    assert loss(case.student, case.teacher, case.batch).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_by_hand() -> None:
    # One sentence of one word and a padding: the state (1, 2) is mapped to itself and is to be (3, 2): squares 4 and 0, mean 2.
    states = features.case_of(
        [[[1.0, 2.0], [9.0, 9.0]]], [[[3.0, 2.0], [0.0, 0.0]]], "states1"
    )
    states.batch = masked(states.batch, [1])
    states.batch.inputs = {"attention_mask": torch.tensor([[1, 0]])}

    def mapped(loss: Any) -> None:
        loss.maps = nn.ModuleList([nn.Linear(2, 2, bias=False, dtype=torch.float64)])
        identical(loss)

    def make() -> TinyBERT:
        loss = TinyBERT(["states1"], [])
        mapped(loss)
        return loss

    assert properties.value_of(make, states).item() == pytest.approx(2.0)
    # Two heads of one word: scores 1 and 2 are to be 4 and 2: squares 9 and 0, mean 4.5.
    scores = features.case_of([[[[1.0]], [[2.0]]]], [[[[4.0]], [[2.0]]]], "scores1")
    assert properties.value_of(
        partial(TinyBERT, [], ["scores1"]), scores
    ).item() == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"states": [], "scores": []}, "TinyBERT: name layers in states or in scores"),
        ({"states": "states1"}, "TinyBERT: layers must list different roles"),
        (
            {"scores": ["scores1", "scores1"]},
            "TinyBERT: layers must list different roles",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TinyBERT(**arguments)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            {"states1": (3,)},
            {"states1": (3,)},
            r"TinyBERT reads states \(B, L, H\) of a transformer; the student's",
        ),
        (
            {"states1": (4, 3)},
            {"states1": (3, 3)},
            "student's layer 'states1' has 4 tokens, the teacher's 3; they must agree",
        ),
        (
            {"scores1": (2, 4, 4)},
            {"scores1": (3, 4, 4)},
            "'scores1' has 2 heads, the teacher's 3; they must agree",
        ),
        (
            {"scores1": (4, 3)},
            {"scores1": (4, 3)},
            r"reads scores \(B, heads, L, L\) of a transformer",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    student: features.Shapes, teacher: features.Shapes, words: str
) -> None:
    case = token_case(student, teacher)
    roles = list(student)
    loss = TinyBERT(
        [r for r in roles if r.startswith("states")],
        [r for r in roles if r.startswith("scores")],
    )
    with pytest.raises(UserError, match=words):
        loss.build(probe(case.student), probe(case.teacher))


def test_a_shared_map_needs_one_width() -> None:
    case = token_case(
        {"states0": (4, 3), "states1": (4, 2)}, {"states0": (4, 3), "states1": (4, 3)}
    )
    with pytest.raises(
        UserError,
        match=r"a shared map needs states of one width, got \[\[3, 3\], \[2, 3\]\]",
    ):
        TinyBERT(["states0", "states1"], [], shared=True).build(
            probe(case.student), probe(case.teacher)
        )


def test_needs_a_teacher_build_and_one_tokenizer() -> None:
    case = token_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="TinyBERT needs a teacher"):
        one().build(probe(case.student), None)
    with pytest.raises(UserError, match="TinyBERT needs a teacher"):
        one()(case.student, None, case.batch)
    with pytest.raises(UserError, match="TinyBERT has no maps yet"):
        one()(case.student, case.teacher, case.batch)
    student = probe(case.student)
    tokens = Vocabulary(1, pad=0, max_length=4, sha256="first")
    other = Vocabulary(2, pad=0, max_length=4, sha256="second")
    apart = Probe(
        student.output, Spec("sentences", vocabulary=tokens, teacher_vocabulary=other)
    )
    with pytest.raises(UserError, match="TinyBERT compares tokens one by one"):
        one().build(apart, probe(case.teacher))


def test_method_file(tmp_path: Path) -> None:
    """The shipped file trains a transformer of two layers against one of four and twice the width; its maps are kept."""
    run = run_method("tinybert", tmp_path, teacher_width=32)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_kd"] + run.metrics["train_loss_tinybert"], rel=1e-5
    )
    content = features.checkpoint_of(run)["state_dict"]
    shapes = {
        name: tuple(t.shape)
        for name, t in content.items()
        if name.startswith("losses.")
    }
    assert shapes == {f"losses.tinybert.maps.{at}.weight": (32, 16) for at in range(3)}
