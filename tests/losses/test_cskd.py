from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe, weight_of
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.cskd import CSKD
from kd_lightning.spec import Spec
from kd_lightning.training import ClassifierModule
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import cskd as reference
from tests.training.resuming import resumed_equals_whole
from tests.training.small import mlp, trainer


def paired(case: Case) -> Case:
    """The student's rows as samples, the teacher's as their companions."""
    logits = torch.cat([case.student.logits, case.teacher.logits])
    withheld = torch.full_like(case.batch.target, UNLABELLED)
    batch = Batch(
        torch.zeros(len(logits), 1),
        torch.cat([case.batch.target, withheld]),
        torch.arange(len(logits)),
        paired=True,
    )
    return Case(Output(logits), Output(logits), batch)


def pairs(case: Case, order: list[int]) -> Case:
    """Some of the pairs."""
    first = torch.tensor(order)
    half = len(case.batch) // 2
    return properties.select(case, torch.cat([first, half + first]))


CHECKS = [
    properties.saturated,
    properties.half_precision,
    response.impossible_classes,
]


@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check) -> None:
    check(CSKD, paired(random_case()))


def test_names_of_classes_do_not_matter() -> None:
    case = paired(random_case())
    case.batch.target.fill_(0)
    response.class_order(CSKD, case)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(temperature: float) -> None:
    for seed, scale in enumerate((0.1, 1.0, 30.0)):
        case = random_case(classes=7, scale=scale, seed=seed)
        case.batch.target[2] = UNLABELLED
        target = case.batch.target.tolist()
        expected = reference.cskd(*logits_of(case), target, temperature)
        value = properties.value_of(partial(CSKD, temperature), paired(case))
        assert value.item() == pytest.approx(expected, rel=1e-9)


def test_known_value() -> None:
    """The sheet's T^2 KL at T = 4, with the teacher's logits as those of the companions."""
    value = properties.value_of(CSKD, paired(example()))
    assert value.item() == pytest.approx(0.335566, abs=1e-6)


def test_by_hand() -> None:
    # T = 1, the companion (3/4, 1/4), the sample (1/2, 1/2): ln 2 minus the entropy.
    case = paired(case_of([[0, 0]], [[math.log(3), 0]], [0]))
    value, (gradient,) = properties.gradients_of(partial(CSKD, 1.0), case)
    entropy = 3 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4)
    assert value.item() == pytest.approx(math.log(2) - entropy)
    # q - p for the sample, nothing for its companion.
    assert gradient.tolist() == [pytest.approx([-1 / 4, 1 / 4]), [0, 0]]


def test_gradients_agree_with_finite_differences() -> None:
    case = random_case()

    def value(samples: Tensor) -> Tensor:
        return properties.value_of(CSKD, paired(replace(case, student=Output(samples))))

    assert torch.autograd.gradcheck(value, [properties.leaf(case.student.logits)])


def test_the_companion_is_the_minimum() -> None:
    case = random_case()
    best, (gradient,) = properties.gradients_of(
        CSKD, paired(replace(case, student=case.teacher))
    )
    assert best.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    assert properties.value_of(CSKD, paired(case)) > 0.01


def test_a_mean_over_pairs() -> None:
    case = paired(random_case())
    value = properties.value_of(CSKD, case)
    assert_close(properties.value_of(CSKD, pairs(case, [4, 1, 0, 3, 5, 2])), value)
    twice = pairs(case, [*range(6), *range(6)])
    assert_close(properties.value_of(CSKD, twice), value)
    halves = [
        properties.value_of(CSKD, pairs(case, part)) for part in ([0, 1, 2], [3, 4, 5])
    ]
    assert_close(sum(halves) / 2, value)


def test_samples_without_a_label_take_no_part() -> None:
    case = paired(random_case())
    case.batch.target[[1, 4]] = UNLABELLED
    value, (gradient,) = properties.gradients_of(CSKD, case)
    assert_close(value, properties.value_of(CSKD, pairs(case, [0, 2, 3, 5])))
    assert not gradient[[1, 4]].any()
    assert weight_of("labelled", case.batch) == 4
    case.batch.target[:] = UNLABELLED
    value, (gradient,) = properties.gradients_of(CSKD, case)
    assert value == 0
    assert not gradient.any()


def test_the_hard_loss_counts_no_companion() -> None:
    plain = random_case()
    value, (gradient,) = properties.gradients_of(CrossEntropy, paired(plain))
    assert_close(value, properties.value_of(CrossEntropy, plain))
    assert not gradient[6:].any()


def test_data_without_pairs_is_refused() -> None:
    case = random_case()
    with pytest.raises(UserError, match="CSKD needs a companion of its class"):
        CSKD()(case.student, None, case.batch)


def test_mixed_samples_are_refused() -> None:
    case = paired(random_case())
    mixed = replace(case.batch, partner=case.batch.target, share=torch.ones(12))
    with pytest.raises(UserError, match="remove Mixup"):
        CSKD()(case.student, None, mixed)


def test_one_label_per_sample() -> None:
    probe = Probe(Output(torch.zeros(8, 3)), Spec(data="pixels", target_shape=(2, 2)))
    with pytest.raises(UserError, match="CSKD needs one label per sample"):
        CSKD().build(probe, None)


def test_bad_temperature() -> None:
    with pytest.raises(UserError, match="CSKD: temperature must be a finite number"):
        CSKD(temperature=0)


def test_the_shipped_method_is_the_papers() -> None:
    losses = response.shipped("cskd")
    assert losses["ce"].weight == losses["cskd"].weight == 1.0
    loss = losses["cskd"]
    assert isinstance(loss, CSKD)
    assert loss.temperature == 4.0
    assert not loss.uses_teacher


# -- training ------------------------------------------------------------------------------------


def small_digits(copies: int = 1) -> DigitsDataModule:
    """Batches of 16 of some 160 samples."""
    return DigitsDataModule(batch_size=16, fraction=0.15, copies=copies)


def module() -> ClassifierModule:
    torch.manual_seed(0)
    return ClassifierModule(mlp(), {"ce": CrossEntropy(), "cskd": CSKD()})


def test_a_fit_asks_the_data_for_pairs() -> None:
    seen: list[Batch] = []

    class Watching(CSKD):
        def forward(
            self, student: Output, teacher: Output | None, batch: Batch
        ) -> Tensor:
            seen.append(batch)
            return super().forward(student, teacher, batch)

    torch.manual_seed(0)
    data = small_digits()
    pairs_of = ClassifierModule(mlp(), {"ce": CrossEntropy(), "cskd": Watching()})
    trainer().fit(pairs_of, datamodule=data)
    target = data.source("train").target
    rows = []
    for batch in seen:
        first, second = batch.index.chunk(2)
        assert torch.equal(target[first], target[second])
        assert not (first == second).any()
        assert torch.equal(batch.target[: len(first)], target[first])
        assert (batch.target[len(first) :] == UNLABELLED).all()
        rows += first.tolist()
    assert sorted(rows) == sorted(data.source("train").rows.tolist())
    # The next run without such a loss is served single samples again.
    trainer().fit(ClassifierModule(mlp()), datamodule=data)
    assert not data.class_pairs


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    assert resumed_equals_whole(module, small_digits, tmp_path)


def test_several_views_exclude_pairs() -> None:
    with pytest.raises(UserError, match=r"set data\.copies=1"):
        trainer().fit(module(), datamodule=small_digits(copies=2))
