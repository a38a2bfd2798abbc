from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.data import DigitsDataModule, Jitter
from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.pskd import PSKD, last_places, softened_labels
from kd_lightning.spec import Spec
from kd_lightning.training import ClassifierModule
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import pskd as reference
from tests.reference.kd import softened
from tests.training.resuming import resumed_equals_whole
from tests.training.small import mlp, trainer


def built(case: Case, alpha: float = 0.4, remembered: bool = True) -> PSKD:
    """The loss in an epoch with this weight; the teacher's predictions are those remembered."""
    loss = PSKD(alpha, epochs=1).double()
    rows = len(case.batch)
    loss.build(Probe(case.student, Spec(data="x", source_samples=rows)), None)
    loss.double()
    if remembered:
        probs = case.teacher.logits.double().softmax(-1)
        loss.predictions[case.batch.index] = probs.detach()
    return loss


def maker(alpha: float = 0.4, remembered: bool = True) -> properties.Make:
    case = random_case()
    return lambda: built(case, alpha, remembered)


CHECKS = [
    properties.batch_order,
    properties.batch_size,
    properties.saturated,
    properties.half_precision,
    properties.double_gradients,
    properties.gradient_reach,
    response.one_sample,
    response.duplication,
    response.ignores_unlabelled_rows,
]


@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check) -> None:
    check(maker(), random_case())


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_agrees_with_reference(alpha: float) -> None:
    for seed, scale in enumerate((0.1, 1.0, 30.0)):
        case = random_case(classes=7, scale=scale, seed=seed)
        case.batch.target[2] = UNLABELLED
        z, v = logits_of(case)
        previous = [softened(row, 1.0) for row in v]
        expected = reference.pskd(z, previous, case.batch.target.tolist(), alpha)
        value = properties.value_of(lambda: built(case, alpha), case)  # noqa: B023
        assert value.item() == pytest.approx(expected, rel=1e-9)


def test_known_value() -> None:
    """The sheet's value: alpha 0.4, the teacher's predictions as those of the last epoch."""
    value = properties.value_of(lambda: built(example()), example())
    assert value.item() == pytest.approx(0.577584, abs=1e-6)


def test_by_hand() -> None:
    # The student gives (1/4, 3/4), gave (1/2, 1/2), and the label is 0: the target is (3/4, 1/4).
    case = case_of([[0, math.log(3)]], [[0, 0]], [0])
    value, (gradient,) = properties.gradients_of(lambda: built(case, 0.5), case)
    expected = 3 / 4 * math.log(4) + 1 / 4 * math.log(4 / 3)
    assert value.item() == pytest.approx(expected)
    assert gradient.tolist() == [pytest.approx([1 / 4 - 3 / 4, 3 / 4 - 1 / 4])]


def test_the_minimum_is_the_softened_label() -> None:
    case = case_of([[0, 0, 0]], [[1, 2, 3]], [1])
    target = softened_labels(torch.tensor([1]), case.teacher.logits.softmax(-1), 0.4)
    assert target.sum().item() == pytest.approx(1)
    best = replace(case, student=Output(target.log()))
    entropy = -(target * target.log()).sum().item()
    properties.minimum(lambda: built(case), best, entropy)
    assert not PSKD.minimum_at_teacher


def test_no_prediction_and_no_weight_leave_the_hard_loss() -> None:
    case = random_case()
    expected = properties.gradients_of(CrossEntropy, case)
    for make in (maker(0.0), maker(0.8, remembered=False)):
        assert_close(properties.gradients_of(make, case), expected)


def test_the_weight_grows_with_the_epochs() -> None:
    loss = PSKD(0.8, epochs=4)
    expected = [0.2, 0.4, 0.6, 0.8, 0.8]
    assert [loss.alpha_at(epoch) for epoch in range(5)] == pytest.approx(expected)
    late = PSKD(0.8, epochs=4, start=2)
    expected = [0.0, 0.0, 0.2, 0.4, 0.6]
    assert [late.alpha_at(epoch) for epoch in range(5)] == pytest.approx(expected)


def epoch_of(loss: PSKD, number: int, samples: Tensor, rows: list[int]) -> Tensor:
    """One batch of an epoch."""
    loss.on_epoch_start(number)
    index = torch.tensor(rows)
    batch = Batch(torch.zeros(len(rows), 1), index % 3, index)
    value: Tensor = loss(Output(samples), None, batch)
    return value


def test_remembers_the_last_epoch_under_shuffling() -> None:
    loss = PSKD(0.9, epochs=3).double()
    samples = random_case(rows=8).student.logits
    loss.build(Probe(Output(samples[:2]), Spec(data="x", source_samples=8)), None)
    loss.double()
    first = samples
    second = random_case(rows=8, seed=1).student.logits
    # Two batches in an order, then in another; the last two rows are never shown.
    epoch_of(loss, 0, first[[4, 1, 0]], [4, 1, 0])
    epoch_of(loss, 0, first[[5, 3, 2]], [5, 3, 2])
    remembered = first.softmax(-1)
    remembered[6:] = 0
    assert_close(loss.predictions, remembered)
    for rows in ([0, 5, 1], [2, 3, 4]):
        target = [row % 3 for row in rows]
        previous = first.softmax(-1)[rows].tolist()
        expected = reference.pskd(second[rows].tolist(), previous, target, 0.6)
        value = epoch_of(loss, 1, second[rows], rows)
        assert value.item() == pytest.approx(expected)
    assert_close(loss.predictions[:6], second.softmax(-1)[:6])


def test_a_sample_shown_twice_keeps_its_last_prediction() -> None:
    index = torch.tensor([3, 1, 3, 0, 3, 1])
    assert last_places(index).tolist() == [4, 5, 4, 3, 4, 5]
    loss = built(random_case())
    samples = random_case(seed=1).student.logits
    epoch_of(loss, 0, samples, [3, 1, 3, 0, 3, 1])
    assert_close(loss.predictions[[0, 1, 3]], samples.softmax(-1)[[3, 5, 4]])


def test_evaluation_changes_nothing() -> None:
    loss = built(random_case()).eval()
    before = loss.predictions.clone()
    epoch_of(loss, 0, random_case(seed=1).student.logits, [0, 1, 2, 3, 4, 5])
    assert torch.equal(loss.predictions, before)


def test_predictions_are_state() -> None:
    assert set(built(random_case()).state_dict()) == {"predictions"}


def test_before_build() -> None:
    case = random_case()
    with pytest.raises(UserError, match="PSKD has no adapters yet"):
        PSKD()(case.student, None, case.batch)


def test_bad_data() -> None:
    output = Output(torch.zeros(8, 3))
    with pytest.raises(UserError, match="PSKD needs one label per sample"):
        PSKD().build(Probe(output, Spec(data="pixels", target_shape=(2, 2))), None)
    with pytest.raises(UserError, match="as source_samples, 1 or more, got 0"):
        PSKD().build(Probe(output, Spec(data="unknown")), None)


def test_mixed_samples_are_refused() -> None:
    case = random_case()
    mixed = replace(case.batch, partner=case.batch.target, share=torch.ones(6))
    with pytest.raises(UserError, match="remove Mixup"):
        built(case)(case.student, None, mixed)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, "0.5", True])
def test_bad_weight(alpha: Any) -> None:
    with pytest.raises(UserError, match=r"PSKD: alpha must be a number in \[0, 1\]"):
        PSKD(alpha)


@pytest.mark.parametrize("epochs", [0, 1.5, True])
def test_bad_epochs(epochs: Any) -> None:
    with pytest.raises(UserError, match="PSKD: epochs must be a whole number"):
        PSKD(epochs=epochs)


def test_the_shipped_method_is_the_papers() -> None:
    losses = response.shipped("pskd")
    assert set(losses) == {"pskd"}
    loss = losses["pskd"]
    assert isinstance(loss, PSKD)
    assert loss.alpha == 0.8
    assert not loss.uses_teacher


# -- training ------------------------------------------------------------------------------------


def digits() -> DigitsDataModule:
    """Ten steps of 16 augmented samples each, and one of one."""
    return DigitsDataModule(batch_size=16, fraction=0.15, augment=[Jitter(1)])


def module() -> ClassifierModule:
    torch.manual_seed(0)
    return ClassifierModule(mlp(), {"pskd": PSKD(epochs=3)})


def test_a_fit_remembers_the_training_samples() -> None:
    data = digits()
    trained = module()
    trainer().fit(trained, datamodule=data)
    loss = trained.losses["pskd"]
    assert isinstance(loss, PSKD)
    sums = loss.predictions.sum(1)
    shown = torch.zeros(len(sums))
    shown[data.source("train").rows] = 1
    assert_close(sums, shown)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    assert resumed_equals_whole(module, digits, tmp_path)
