from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.pad import PAD, adaptive_distance
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import pad as reference
from tests.training.small import last

STUDENT: features.Shapes = {"penultimate": (3,)}
TEACHER: features.Shapes = {"penultimate": (4,)}

widths = pytest.mark.parametrize(
    "student", [STUDENT, TEACHER], ids=["narrower", "equal"]
)


def loss_of(case: Case, adaptive: bool = True) -> Make:
    def spread(loss: Any) -> None:
        loss.log_variance.norm.weight.data *= 0.5

    return made(partial(PAD, adaptive=adaptive), case, spread)


def without_constant_bias(make: Make, case: Case) -> None:
    """As `reaches_adapters`; batch norm removes the bias of the layer before it."""
    loss: Any = make().double()
    teacher = properties.change(case.teacher, properties.leaf)
    torch.autograd.backward(loss(case.student, teacher, case.batch))
    idle = [
        n
        for n, p in loss.named_parameters()
        if p.grad is None or p.grad.abs().max() < 1e-12
    ]
    assert idle == ["log_variance.linear.bias"]
    assert all(tensor.grad is None for tensor in properties.tensors(teacher))


@widths
@pytest.mark.parametrize(
    "check",
    [
        *(c for c in features.WITH_ADAPTERS if c is not features.reaches_adapters),
        without_constant_bias,
    ],
)
def test_properties(check: properties.Check, student: features.Shapes) -> None:
    case = feature_case(student, TEACHER)
    check(loss_of(case), case)


@pytest.mark.parametrize("check", features.WITHOUT_ADAPTERS)
def test_properties_without_variance(check: properties.Check) -> None:
    case = feature_case(TEACHER, TEACHER)
    check(loss_of(case, adaptive=False), case)


@widths
@pytest.mark.parametrize("adaptive", [True, False])
def test_agrees_with_reference(adaptive: bool, student: features.Shapes) -> None:
    case = feature_case(student, TEACHER, rows=6)
    loss: Any = loss_of(case, adaptive)().double()
    rows = case.student.features["penultimate"].tolist()
    if loss.adapter is not None:
        rows = reference.linear(
            rows, loss.adapter.weight.tolist(), loss.adapter.bias.tolist()
        )
    hints = case.teacher.features["penultimate"].tolist()
    layer = loss.log_variance.linear
    values = reference.linear(rows, layer.weight.tolist(), layer.bias.tolist())
    spread = reference.batch_normalized(values, 1e-5)
    log_variance = [[0.5 * v for v in row] for row in spread]
    if adaptive:
        expected = reference.distance(rows, hints, log_variance)
    else:
        squares = [
            (a - b) ** 2
            for row, hint in zip(rows, hints, strict=True)
            for a, b in zip(row, hint, strict=True)
        ]
        expected = sum(squares) / len(squares)
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9)


def test_value_of_the_sheet() -> None:
    rows = [torch.tensor(r).double() for r in (sheet.STUDENT_ROWS, sheet.TEACHER_ROWS)]
    log_variance = torch.tensor([0.0, 1.0]).double().expand(3, 2)
    value = adaptive_distance(rows[0], rows[1], log_variance)
    assert value.item() == pytest.approx(1.639899, abs=1e-6)


def test_by_hand() -> None:
    # Squares 4 and 0 with variances 1 and 1, or e and 1: (4 + 0) / 2, and (4 / e + 1) / 2.
    case = case_of([[1.0, 2.0]], [[3.0, 2.0]], role="penultimate")
    own, target = (
        case.student.features["penultimate"],
        case.teacher.features["penultimate"],
    )
    zeros = torch.zeros(1, 2).double()
    assert adaptive_distance(own, target, zeros).item() == pytest.approx(2, rel=1e-5)
    one = torch.tensor([[1.0, 0.0]]).double()
    expected = (4 * torch.tensor(-1.0).exp().item() + 1) / 2
    assert adaptive_distance(own, target, one).item() == pytest.approx(
        expected, rel=1e-5
    )
    # Without a variance: 4 / 2.
    assert value_of(loss_of(case, adaptive=False), case).item() == pytest.approx(2.0)


def test_the_best_variance_is_the_square_of_the_error() -> None:
    own, target = torch.tensor([[1.0]]).double(), torch.tensor([[1.5]]).double()
    for factor, sign in ((1.0, 0), (0.5, -1), (2.0, 1)):
        v = torch.tensor([[factor * 0.25]]).double().log().requires_grad_()
        (gradient,) = torch.autograd.grad(adaptive_distance(own, target, v), v)
        assert gradient.sign().item() == sign or abs(gradient.item()) < 1e-5


def test_equal_features_are_bounded_below() -> None:
    """Without an error the loss is the log variance itself, until that underflows."""
    same = torch.ones(2, 3).double()
    for log_variance in (-5.0, -50.0, 50.0):
        v = torch.full((2, 3), log_variance).double().requires_grad_()
        value = adaptive_distance(same, same, v)
        assert value.item() == pytest.approx(log_variance)
        (gradient,) = torch.autograd.grad(value, v)
        assert gradient.isfinite().all()


def test_trains_residual_networks() -> None:
    module = features.residual(PAD(weight=0.1))
    before = {name: p.clone() for name, p in module.losses.named_parameters()}
    features.fitted(module, epochs=2)
    after = dict(module.losses.named_parameters())
    same = [name for name, value in before.items() if torch.equal(after[name], value)]
    assert same in ([], ["own.log_variance.linear.bias"])


def test_two_stages(tmp_path: Path) -> None:
    """The plain distance, then the adaptive one from there, with the same linear layer."""
    first = features.run_method("pad_l2", tmp_path / "first")
    assert first.metrics["train_loss"] == pytest.approx(
        first.metrics["train_loss_ce"] + first.metrics["train_loss_pad"], rel=1e-5
    )
    learned: Any = first.module.losses["pad"]
    small = "--model.optimizer.init_args.lr=1.0e-7"
    start = f"--model.init_from={last(first)}"
    second = features.run_method("pad", tmp_path / "second", start, small)
    loss: Any = second.module.losses["pad"]
    assert (learned.adaptive, loss.adaptive) == (False, True)
    torch.testing.assert_close(
        loss.adapter.weight, learned.adapter.weight, rtol=0, atol=1e-5
    )
    assert loss.log_variance.norm.running_mean.any()
    assert not learned.log_variance.norm.running_mean.any()


def test_bad_arguments_and_calls_before_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    assert PAD().adaptive
    with pytest.raises(UserError, match="PAD: layer must be the role of a layer"):
        PAD("")
    with pytest.raises(UserError, match="PAD needs a teacher"):
        PAD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="PAD has no adapters yet"):
        PAD()(case.student, case.teacher, case.batch)
    maps = feature_case({"penultimate": (2, 2, 2)}, TEACHER)
    with pytest.raises(UserError, match=r"PAD reads vectors \(B, C\)"):
        loss_of(maps)()
