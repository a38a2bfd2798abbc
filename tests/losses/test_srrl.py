from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses.srrl import SRRL
from kd_lightning.types import Output
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, identical_connector, made
from tests.losses.properties import Case, Make, value_of
from tests.losses.test_simkd import head_of
from tests.reference import fitnets, heads

STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (4, 3, 2)}
LARGER: features.Shapes = {"map": (4, 5, 1)}

sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def identical(loss: Any) -> None:
    identical_connector(loss.connector)


def loss_of(case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(SRRL, case, prepare, teacher_modules=head_of(case))


@sizes
@pytest.mark.parametrize("check", features.WITH_ADAPTERS)
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case), case)


@sizes
@pytest.mark.parametrize("logit_weight", [1.0, 5.0])
def test_agrees_with_reference(teacher: features.Shapes, logit_weight: float) -> None:
    case = feature_case(STUDENT, teacher)
    loss: Any = loss_of(case)().double()
    loss.logit_weight = logit_weight
    weight = loss.connector[0][0].weight.tolist()
    maps = [
        fitnets.convolved(sample, weight, [0.0] * 4)
        for sample in case.student.features["map"].tolist()
    ]
    maps = fitnets.batch_normalized(maps)
    vectors = [heads.pooled(fitnets.rectified(sample)) for sample in maps]
    targets = [heads.pooled(sample) for sample in case.teacher.features["map"].tolist()]
    head = loss.classifier.weight.tolist(), loss.classifier.bias.tolist()
    logits = [heads.logits(vector, *head) for vector in vectors]
    expected = heads.mean_square(vectors, targets)
    expected += logit_weight * heads.mean_square(logits, case.teacher.logits.tolist())
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    """The term of the features: the classifier gives the teacher's logits, all zero."""
    case = case_of(sheet.STUDENT, sheet.TEACHER, role="map")
    head = nn.Linear(2, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    make = made(SRRL, case, identical, teacher_modules={"head": head})
    assert value_of(make, case).item() == pytest.approx(0.03125)


def test_by_hand() -> None:
    # The student's map (1, 3) has the mean 2, the teacher's (3, 3) the mean 3: 1. The classifier
    # gives (2, 0, -2) and the teacher's logits are (3, 0, 0): squares 1, 0 and 4.
    case = case_of([[[[1.0, 3.0]]]], [[[[3.0, 3.0]]]], role="map")
    teacher = Output(torch.tensor([[3.0, 0.0, 0.0]]).double(), case.teacher.features)
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[1.0], [0.0], [-1.0]])
    make = made(SRRL, case, identical, teacher_modules={"head": head})
    assert value_of(
        make, Case(case.student, teacher, case.batch)
    ).item() == pytest.approx(1 + 5 / 3)


def test_minimum_where_features_and_logits_are_the_teachers() -> None:
    case = feature_case({"map": (4, 3, 2)}, {"map": (4, 3, 2)})
    best = properties.change(case.teacher, torch.abs)
    head: Any = head_of(case)["head"]
    logits = head.double()(best.features["map"].mean((2, 3))).detach()
    best = Output(logits, best.features)
    make = made(SRRL, case, identical, teacher_modules={"head": head.float()})
    properties.minimum(make, Case(best, best, case.batch), atol=1e-6)


def test_trains_residual_networks(tmp_path: Path) -> None:
    module = features.trains(SRRL, tmp_path)
    loss: Any = module.losses["own"]
    teacher: Any = module.teacher
    assert torch.equal(loss.classifier.weight, teacher.network.head.weight)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("srrl", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_srrl"], rel=1e-5
    )
    assert "losses.srrl.classifier.bias" in features.checkpoint_of(run)["state_dict"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "SRRL: layer must be the role of a layer"),
        (
            {"logit_weight": -1},
            "SRRL: logit_weight must be a finite number greater than 0",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SRRL(**arguments)


def test_bad_heads_and_calls_before_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="the teacher's layer 'head' is a NoneType"):
        SRRL().build(features.probe(case.student), features.probe(case.teacher))
    with pytest.raises(UserError, match="SRRL needs a teacher"):
        SRRL().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="SRRL has no adapters yet"):
        SRRL()(case.student, case.teacher, case.batch)
