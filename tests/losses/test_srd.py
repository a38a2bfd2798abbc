from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.srd import SRD, TINY, log_sum_distance, standardized
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, identical_connector, made
from tests.losses.properties import Case, Make, gradients_of, select, value_of
from tests.reference import srd as reference
from tests.reference.heads import pooled
from tests.reference.pad import linear

VECTORS: features.Shapes = {"penultimate": (3,)}
WIDER: features.Shapes = {"penultimate": (4,)}
MAPS: features.Shapes = {"penultimate": (3, 2, 2)}
WIDER_MAPS: features.Shapes = {"penultimate": (4, 3, 1)}

kinds = pytest.mark.parametrize(
    ("student", "teacher"),
    [(VECTORS, WIDER), (MAPS, WIDER_MAPS)],
    ids=["vectors", "maps"],
)


def loss_of(case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(SRD, case, prepare)


def reaches_projector(make: Make, case: Case) -> None:
    """The projector trains; its bias does not, because the mean over the batch is subtracted."""
    loss: Any = make().double()
    teacher = properties.change(case.teacher, properties.leaf)
    torch.autograd.backward(loss(case.student, teacher, case.batch))
    assert loss.projector.weight.grad.abs().min() > 1e-9
    assert loss.projector.bias.grad.abs().max() < 1e-9
    assert all(tensor.grad is None for tensor in properties.tensors(teacher))


@kinds
@pytest.mark.parametrize(
    "check",
    [
        *(
            c
            for c in features.WITH_ADAPTERS
            if c not in (features.reaches_adapters, features.duplicated)
        ),
        reaches_projector,
    ],
)
def test_properties(
    check: properties.Check, student: features.Shapes, teacher: features.Shapes
) -> None:
    case = feature_case(student, teacher)
    check(loss_of(case), case)


@kinds
def test_a_larger_batch_adds_a_constant(
    student: features.Shapes, teacher: features.Shapes
) -> None:
    """Every sample twice adds log 2; a sample's gradient is halved, as in a mean."""
    case = feature_case(student, teacher)
    twice = select(case, torch.arange(4).repeat(2))
    value, (_, gradient) = gradients_of(loss_of(case), case)
    double_value, (_, double_gradient) = gradients_of(loss_of(case), twice)
    assert double_value.item() == pytest.approx(value.item() + math.log(2))
    torch.testing.assert_close(double_gradient[:4], gradient / 2)


@kinds
def test_agrees_with_reference(
    student: features.Shapes, teacher: features.Shapes
) -> None:
    for seed in range(3):
        case = feature_case(student, teacher, rows=5, seed=seed)
        loss: Any = loss_of(case)().double()
        sides = [
            case.student.features["penultimate"],
            case.teacher.features["penultimate"],
        ]
        rows = [
            [pooled(sample) for sample in side.tolist()]
            if side.ndim == 4
            else side.tolist()
            for side in sides
        ]
        weight, bias = loss.projector.weight.tolist(), loss.projector.bias.tolist()
        expected = reference.distance(linear(rows[0], weight, bias), rows[1])
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    rows = [torch.tensor(r).double() for r in (sheet.STUDENT_ROWS, sheet.TEACHER_ROWS)]
    assert log_sum_distance(*rows).item() == pytest.approx(4.830540, abs=1e-6)


def test_by_hand() -> None:
    # Two samples: -1 and 1 are standardized (up to eps), the teacher's 3 and 1 become 1 and -1. The
    # differences are 2: 16 + 16.
    case = case_of([[-1.0], [1.0]], [[3.0], [1.0]], role="penultimate")

    def identical(loss: Any) -> None:
        identical_connector(loss.projector)

    value = value_of(loss_of(case, identical), case).item()
    assert value == pytest.approx(math.log(32), abs=1e-3)


def test_falls_without_bound_towards_the_teacher() -> None:
    """There is no minimum at 0; equal features have a finite loss and no gradient."""
    teacher = feature_case(WIDER, WIDER, rows=6).teacher.features["penultimate"]
    values = [
        log_sum_distance(properties.jitter(step, teacher), teacher).item()
        for step in (1.0, 0.1, 0.01)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[1] > 4
    student = teacher.clone().requires_grad_()
    value = log_sum_distance(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(math.log(TINY))
    assert not gradient.any()


def test_scale_and_shift_of_features_are_free() -> None:
    teacher = feature_case(WIDER, WIDER, rows=6).teacher.features["penultimate"]
    torch.testing.assert_close(
        standardized(1000 * teacher - 7), standardized(1e6 * teacher), atol=1e-3, rtol=0
    )
    assert not standardized(teacher[:1]).any()


def test_the_joint_batch_decides() -> None:
    assert SRD.mean_over == "joint"


def test_trains_residual_networks() -> None:
    module = features.residual(SRD(weight=0.1))
    before = {name: p.clone() for name, p in module.losses.named_parameters()}
    features.fitted(module, epochs=2)
    after = dict(module.losses.named_parameters())
    weight = "own.projector.weight"
    assert not torch.equal(after[weight], before[weight])


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("srd", tmp_path)
    metrics = run.metrics
    assert metrics["train_loss"] == pytest.approx(
        metrics["train_loss_ce"]
        + metrics["train_loss_kd"]
        + 2 * metrics["train_loss_srd"],
        rel=1e-5,
    )
    loss: Any = run.module.losses["kd"]
    assert loss.temperature == 1
    assert "losses.srd.projector.weight" in features.checkpoint_of(run)["state_dict"]


def test_bad_arguments_and_calls_before_build() -> None:
    case = feature_case(VECTORS, WIDER)
    with pytest.raises(UserError, match="SRD: layer must be the role of a layer"):
        SRD("")
    with pytest.raises(UserError, match="SRD needs a teacher"):
        SRD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="SRD has no adapters yet"):
        SRD()(case.student, case.teacher, case.batch)
    mixed = feature_case(VECTORS, WIDER_MAPS)
    with pytest.raises(UserError, match="name two maps or two vectors"):
        loss_of(mixed)()
