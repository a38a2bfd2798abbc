"""A teacher is frozen: nothing that its owner or a trainer does changes what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.teachers import ModelTeacher, Teacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from tests.training.small import (
    complaint,
    copied,
    distillation,
    same,
    samples,
    shaky,
    trainer,
)


class Own(Teacher):
    """What a user writes: a network kept under a name of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = network

    def outputs(self, batch: Batch) -> Output:
        return Output(self.own(batch.inputs))


def frozen(teacher: Teacher) -> bool:
    return not any(m.training for m in teacher.modules()) and not any(
        p.requires_grad for p in teacher.parameters()
    )


@pytest.fixture
def owner(data: DigitsDataModule) -> DistillationModule:
    module = distillation(teacher=ModelTeacher(network=shaky()), student=shaky())
    module.attach(data)
    return module


def test_a_teacher_answers_only_after_prepare(data: DigitsDataModule) -> None:
    teacher = Own(shaky())
    batch = samples(data, "test", 4)
    assert complaint(lambda: teacher(batch)) == (
        "Own is not prepared; call prepare(datamodule) first"
    )
    teacher.prepare(data)
    assert len(teacher(batch).logits) == len(batch)


def test_prepare_freezes(data: DigitsDataModule) -> None:
    teacher = ModelTeacher(network=shaky())
    assert not frozen(teacher)
    teacher.prepare(data)
    assert frozen(teacher)


CAREFUL: dict[str, Callable[[DistillationModule], object]] = {
    "teacher.train": lambda owner: owner.teacher.train(),
    "teacher.train(True)": lambda owner: owner.teacher.train(True),
    "teacher.requires_grad_": lambda owner: owner.teacher.requires_grad_(True),
    "owner.train": lambda owner: owner.train(),
    "owner.eval, then train": lambda owner: owner.eval().train(),
}


@pytest.mark.parametrize("action", CAREFUL)
def test_stays_frozen(owner: DistillationModule, action: str) -> None:
    CAREFUL[action](owner)
    assert frozen(owner.teacher)
    assert owner.net.training
    assert all(p.requires_grad for p in owner.net.parameters())


@pytest.mark.parametrize("action", ["requires_grad_", "unfreeze"])
def test_stays_frozen_whatever_its_owner_asks_for(
    owner: DistillationModule, action: str
) -> None:
    getattr(owner, action)()
    assert frozen(owner.teacher)


def test_a_fit_changes_nothing(
    owner: DistillationModule, data: DigitsDataModule
) -> None:
    batch = samples(data, "train", 64)
    teacher, student = copied(owner.teacher), copied(owner.net)
    before = owner.teacher(batch).logits
    trainer(max_epochs=2).fit(owner, datamodule=data)
    owner.train()
    assert frozen(owner.teacher)
    assert same(
        copied(owner.teacher), teacher
    )  # running statistics and the count of batches among them
    assert torch.equal(owner.teacher(batch).logits, before)
    assert torch.equal(
        owner.teacher(batch).logits, before
    )  # dropout would give another answer each time
    # The student, the same network in train mode, did change in each of these ways: the test can fail.
    now = copied(owner.net)
    assert not any(
        torch.equal(now[name], student[name])
        for name in ("1.weight", "2.running_mean", "2.num_batches_tracked")
    )
    assert not torch.equal(owner(batch.inputs), owner(batch.inputs))


def test_forward_has_no_graph(
    owner: DistillationModule, data: DigitsDataModule
) -> None:
    batch = samples(data, "train", 4)
    logits = owner.teacher(batch).logits
    assert not logits.requires_grad
    # An output of inference mode could not take part in a loss: "Inference tensors cannot be
    # saved for backward".
    assert not logits.is_inference()
    assert isinstance(batch.inputs, torch.Tensor)
    assert owner(batch.inputs).requires_grad


def test_gradients_reach_inputs_that_require_them_but_no_weights(
    owner: DistillationModule, data: DigitsDataModule
) -> None:
    """A generator learns from what the teacher says about its images."""
    batch = samples(data, "train", 4)
    assert isinstance(batch.inputs, torch.Tensor)
    batch.inputs.requires_grad_()
    owner.teacher(batch).logits.square().sum().backward()
    assert batch.inputs.grad is not None
    assert bool(batch.inputs.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in owner.teacher.parameters())


def test_follows_its_owner(owner: DistillationModule, data: DigitsDataModule) -> None:
    owner.double()
    assert {p.dtype for p in owner.teacher.parameters()} == {torch.float64}
    batch = samples(data, "train", 4)
    assert isinstance(batch.inputs, torch.Tensor)
    batch.inputs = batch.inputs.double()
    assert owner.teacher(batch).logits.dtype == torch.float64


def test_unprepared(data: DigitsDataModule) -> None:
    teacher = Own(shaky())
    assert not teacher.ready
    message = complaint(lambda: teacher(samples(data, "train", 2)))
    assert message == "Own is not prepared; call prepare(datamodule) first"
    teacher.prepare(data)
    assert teacher(samples(data, "train", 2)).logits.shape == (2, 10)


def test_a_users_own_teacher_is_in_eval_mode(data: DigitsDataModule) -> None:
    teacher = Own(shaky())
    teacher.prepare(data)
    assert frozen(teacher)


def test_no_features_and_no_sources_unless_a_subclass_has_them() -> None:
    teacher = Own(shaky())
    assert teacher.tap(set()) == {}
    assert "Own has no features for penultimate, stage1" in complaint(
        lambda: teacher.tap({"stage1", "penultimate"})
    )
    assert teacher.sources() == []
    with pytest.raises(TypeError, match="abstract"):
        Teacher()  # type: ignore[abstract]
