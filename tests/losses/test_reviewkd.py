from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.reviewkd import ReviewKD, as_map, context_loss
from tests.losses import features, properties, sheet
from tests.losses.features import feature_case, made
from tests.losses.properties import Case, Make
from tests.reference import reviewkd as reference

STUDENT: features.Shapes = {
    "stage1": (2, 4, 6),
    "stage2": (2, 2, 3),
    "penultimate": (3,),
}
TEACHER: features.Shapes = {
    "stage1": (3, 4, 6),
    "stage2": (2, 2, 3),
    "penultimate": (2,),
}
LARGER: features.Shapes = {
    "stage1": (3, 6, 6),
    "stage2": (2, 3, 2),
    "penultimate": (2,),
}

sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(case: Case) -> Make:
    roles = list(case.student.features)
    return made(partial(ReviewKD, roles, roles), case)


@sizes
@pytest.mark.parametrize(
    "check",
    [
        check
        for check in features.WITH_ADAPTERS
        if check is not properties.double_gradients
    ],
)
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case), case)


def test_gradients_agree_with_finite_differences() -> None:
    small: features.Shapes = {"stage2": (2, 2, 2), "penultimate": (2,)}
    case = feature_case(small, small)
    properties.double_gradients(loss_of(case), case)


def weights_of(fusion: Any) -> reference.Weights:
    attention = fusion.attention
    return reference.Weights(
        fusion.reduce[0].weight.tolist(),
        fusion.expand[0].weight.tolist(),
        None if attention is None else attention[0].weight.tolist(),
        None if attention is None else attention[0].bias.tolist(),
    )


@sizes
def test_agrees_with_reference(teacher: features.Shapes) -> None:
    for seed in range(3):
        case = feature_case(STUDENT, teacher, seed=seed)
        loss: Any = loss_of(case)().double()
        sides = [
            [as_map(feature).tolist() for feature in output.features.values()]
            for output in (case.student, case.teacher)
        ]
        weights = [weights_of(fusion) for fusion in loss.fusions]
        expected = reference.review(sides[0], sides[1], weights)
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    student, teacher = torch.tensor(sheet.STUDENT), torch.tensor(sheet.TEACHER)
    assert context_loss(student, teacher).item() == pytest.approx(0.927083, abs=1e-6)


def test_context_by_hand() -> None:
    # A 2x2 map that differs by 2 at one position: mean square 1, and of the means (1/2)^2. A map of
    # one position has one resolution.
    student = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    teacher = torch.zeros(1, 1, 2, 2)
    assert context_loss(student, teacher).item() == pytest.approx((1 + 0.25 / 2) / 1.5)
    assert context_loss(
        student[..., :1, :1], teacher[..., :1, :1]
    ).item() == pytest.approx(4.0)
    # At 8x8 the weights are 1, 1/2, 1/4 and 1/8; a constant difference of 1 is 1 everywhere.
    ones = torch.ones(1, 1, 8, 8)
    assert context_loss(ones, 0 * ones).item() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 9])
def test_context_has_its_minimum_where_the_maps_agree(size: int) -> None:
    teacher = torch.randn(
        2, 3, size, size, generator=torch.Generator().manual_seed(0)
    ).double()
    student = teacher.clone().requires_grad_()
    value = context_loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0
    assert not gradient.any()
    for step in (1e-3, 1.0):
        assert context_loss(properties.jitter(step, teacher), teacher) > 0


def test_later_layers_reach_earlier_ones_and_not_the_reverse() -> None:
    case = feature_case(STUDENT, TEACHER)
    first: Any = loss_of(case)().double()
    leaves = properties.change(case.student, properties.leaf)
    own, last = leaves.features["stage1"], leaves.features["penultimate"]
    fusion: Any = first.fusions
    passed = fusion[2](as_map(last), None, (1, 1))[1]
    predicted, _ = fusion[0](own, passed, (4, 6))
    gradients = torch.autograd.grad(
        predicted.square().sum() + predicted.sum() ** 3, [own, last]
    )
    assert all(gradient.any() for gradient in gradients)


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(ReviewKD, tmp_path)


def test_width_has_a_limit() -> None:
    wide = feature_case(
        {"a": (2, 2, 2), "b": (600,)}, {"a": (3, 2, 2), "b": (4,)}, rows=2
    )
    loss: Any = made(partial(ReviewKD, ["a", "b"], ["a", "b"]), wide)()
    assert [fusion.reduce[0].weight.shape[0] for fusion in loss.fusions] == [512, 512]
    assert [fusion.attention is None for fusion in loss.fusions] == [False, True]


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("reviewkd", tmp_path)
    # In the first of 20 epochs of warm-up, the weight is a twentieth of 5.
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 0.25 * run.metrics["train_loss_reviewkd"],
        rel=1e-5,
    )
    state = features.checkpoint_of(run)["state_dict"]
    assert "losses.reviewkd.fusions.0.attention.0.weight" in state
    assert "losses.reviewkd.fusions.3.expand.1.running_mean" in state


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "ReviewKD: layers must list different roles"),
        (
            {"layers": ["a"]},
            "ReviewKD: layers and teacher_layers must pair up, got 1 and 4",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ReviewKD(**arguments)


def test_needs_a_teacher_and_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    loss = ReviewKD(list(STUDENT), list(STUDENT))
    with pytest.raises(UserError, match="ReviewKD needs a teacher"):
        loss.build(features.probe(case.student), None)
    with pytest.raises(UserError, match="ReviewKD has no adapters yet"):
        loss(case.student, case.teacher, case.batch)
    with pytest.raises(UserError, match="name two maps or two vectors"):
        ReviewKD(["stage1"], ["penultimate"]).build(
            features.probe(case.student), features.probe(case.teacher)
        )
