from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.ofa import OFA, enhanced_cost, separable_convolution
from kd_lightning.types import UNLABELLED, Output
from tests.losses import features, properties, response
from tests.losses.features import feature_case, made
from tests.losses.properties import Case, Make, random_case, value_of
from tests.reference import ofa as reference

MAPS: features.Shapes = {"stage1": (2, 4, 3), "stage2": (3, 2, 2), "stage3": (4, 2, 1)}
TOKENS: features.Shapes = {"stage1": (5, 4), "stage2": (3, 8), "stage3": (3, 8)}
MIXED: features.Shapes = {"stage1": (2, 4, 3), "stage2": (5, 4), "stage3": (3, 8)}
kinds = pytest.mark.parametrize(
    "stages", [MAPS, TOKENS, MIXED], ids=["maps", "tokens", "maps and tokens"]
)
exponents = pytest.mark.parametrize("exponent", [1.0, 1.5])


def drawn(stages: features.Shapes = MAPS) -> Case:
    """Four samples of five classes; the teacher has no features."""
    case = feature_case(stages, {})
    logits = random_case(rows=4)
    student = replace(case.student, logits=logits.student.logits)
    batch = replace(case.batch, target=torch.tensor([0, 1, 2, 0]))
    return Case(student, logits.teacher, batch)


def loss_of(case: Case, **arguments: Any) -> Make:
    return made(partial(OFA, **arguments), case)


def silent(loss: Any) -> None:
    """All branches predict the same for each class."""
    for branch in loss.branches:
        nn.init.zeros_(branch[-1].weight)


CHECKS = [
    *features.WITH_ADAPTERS,
    response.needs_a_teacher,
    response.ruled_out_by_the_teacher,
    response.ensembles,
]


@kinds
@exponents
@pytest.mark.parametrize("check", CHECKS)
def test_properties(
    check: properties.Check, stages: features.Shapes, exponent: float
) -> None:
    case = drawn(stages)
    check(loss_of(case, exponent=exponent), case)


@pytest.mark.parametrize("t", [1.0, 3.0])
@exponents
def test_agrees_with_reference(exponent: float, t: float) -> None:
    case = drawn()
    case.batch.target[3] = UNLABELLED
    loss: Any = loss_of(case, exponent=exponent, branches=0.5, temperature=t)()
    loss = loss.double().eval()
    z, v = response.logits_of(case)
    labels = case.batch.target.tolist()
    expected = reference.mean_cost(z, v, labels, exponent, t)
    for role, branch in zip(loss.layers, loss.branches, strict=True):
        logits = branch(case.student.features[role]).tolist()
        expected += 0.5 * reference.mean_cost(logits, v, labels, exponent, t)
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 0.832550), (1.5, 0.757859)])
def test_value_of_the_sheet(exponent: float, expected: float) -> None:
    case = response.example()
    student, teacher = case.student.log_probs(), case.teacher.log_probs()
    costs = enhanced_cost(student, teacher, case.batch.target, exponent)
    assert costs.mean().item() == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # The teacher gives (3/4, 1/4) and the label is the first class: with e = 2 the target is
    # (49/16 - 1, 1/16). The student and both branches give (1/2, 1/2), at a cost of 34/16 ln 2.
    case = feature_case({"stage1": (2, 2, 2), "stage2": (2, 2, 2)}, {}, rows=1)
    case = replace(
        case,
        student=replace(case.student, logits=torch.zeros(1, 2).double()),
        teacher=Output(torch.tensor([[math.log(3), 0.0]]).double()),
    )
    make = made(partial(OFA, ["stage1", "stage2"], exponent=2.0), case, silent)
    assert value_of(make, case).item() == pytest.approx(3 * 34 / 16 * math.log(2))


def test_an_exponent_of_one_has_the_gradient_of_soft_targets() -> None:
    case = drawn()
    make = loss_of(case, branches=0.0)
    _, (found, *_) = properties.gradients_of(make, case)
    _, (expected, *_) = properties.gradients_of(partial(KD, temperature=1.0), case)
    torch.testing.assert_close(found, expected)


def test_a_larger_exponent_asks_for_more_of_the_label() -> None:
    case = response.example()
    teacher = case.teacher.log_probs()

    def share_of_label(exponent: float) -> float:
        """The best student's probability of the second sample's label."""
        logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        costs = enhanced_cost(
            logits.log_softmax(1), teacher, case.batch.target, exponent
        )
        (gradient,) = torch.autograd.grad(costs.sum(), logits)
        # At a uniform student, the gradient is sum(t) / 3 - t for the target t.
        return -gradient[1, 1].item()

    assert share_of_label(1.5) > share_of_label(1.2) > share_of_label(1.0)


@exponents
def test_labels(exponent: float) -> None:
    """Unknown labels leave the plain power; mixed ones count by their shares."""
    case = drawn()
    student, teacher = case.student.log_probs(), case.teacher.log_probs()
    unknown = torch.full((4,), UNLABELLED)
    found = enhanced_cost(student, teacher, unknown, exponent)
    expected = -(teacher.exp() ** exponent * student).sum(1)
    torch.testing.assert_close(found, expected)
    shares = torch.tensor([0.25, 1.0, 0.0, 0.5])
    partner = torch.tensor([1, UNLABELLED, 1, 2])
    mixed = replace(case.batch, partner=partner, share=shares)
    loss: Any = loss_of(case, exponent=exponent)().double().eval()
    total = 0.0
    for row in range(4):
        for labels, part in (
            (case.batch.target, shares[row]),
            (partner, 1 - shares[row]),
        ):
            plain = replace(case, batch=replace(case.batch, target=labels))
            alone = properties.select(plain, torch.tensor([row]))
            value = loss(alone.student, alone.teacher, alone.batch)
            total += float(part) * value.item() / 4
    found = loss(case.student, case.teacher, mixed)
    assert found.item() == pytest.approx(total)


@exponents
def test_impossible_classes_leave_the_value(exponent: float) -> None:
    case = response.example()
    student, teacher = case.student.log_probs(), case.teacher.log_probs()
    ruled_out = torch.full_like(student, -math.inf)
    wide = enhanced_cost(
        torch.cat([student, ruled_out], 1),
        torch.cat([teacher, ruled_out], 1),
        case.batch.target,
        exponent,
    )
    narrow = enhanced_cost(student, teacher, case.batch.target, exponent)
    torch.testing.assert_close(wide, narrow)


def test_the_minimum_is_not_the_teacher() -> None:
    case = drawn()
    equal = replace(case, student=replace(case.student, logits=case.teacher.logits))
    value, gradients = properties.gradients_of(loss_of(case, exponent=1.5), equal)
    assert value > 0.1
    assert gradients[0].abs().max() > 0.01


def test_branches_end_at_the_size_of_the_last_stage() -> None:
    maps = torch.zeros(2, 3, 8, 5)
    assert separable_convolution(3, 7)(maps).shape == (2, 7, 4, 3)
    case = drawn()
    loss: Any = loss_of(case)()
    kinds = [[type(layer).__name__ for layer in branch] for branch in loss.branches]
    end = ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert kinds == [
        ["Sequential", "Sequential", *end],
        ["Sequential", *end],
        ["Conv2d", *end],
    ]
    # Channels double until the last stage's 4 are reached.
    assert [branch[-1].in_features for branch in loss.branches] == [4, 4, 4]
    assert loss.branches[0][0][-3].out_channels == 4


def test_reads_no_features_of_the_teacher() -> None:
    assert OFA().student_roles == {"stage1", "stage2", "stage3"}
    assert OFA().teacher_roles == set()


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(OFA, tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("ofa", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_ofa"], rel=1e-5
    )
    loss = response.shipped("ofa")["ofa"]
    assert isinstance(loss, OFA)
    assert (loss.exponent, loss.branch_weight, loss.temperature) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "OFA: layers must list different roles"),
        ({"exponent": 0.5}, "OFA: exponent must be a finite number of at least 1"),
        ({"exponent": math.nan}, "OFA: exponent must be a finite number of at least"),
        ({"branches": -1}, "OFA: branches must be a finite number of at least 0"),
        ({"temperature": 0}, "OFA: temperature must be a finite number"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OFA(**arguments)


def test_bad_features_and_calls_before_build() -> None:
    case = drawn()
    with pytest.raises(UserError, match="OFA has no adapters yet"):
        OFA()(case.student, case.teacher, case.batch)
    with pytest.raises(UserError, match="OFA needs a teacher"):
        loss_of(case)()(case.student, None, case.batch)
    with pytest.raises(UserError, match=r"the student's layer 'stage3' gives \[4\] p"):
        loss_of(drawn({**MAPS, "stage3": (4,)}))()
    with pytest.raises(UserError, match="are 6 wide, which 4 attention heads cannot"):
        loss_of(drawn({**TOKENS, "stage1": (5, 6)}))()
