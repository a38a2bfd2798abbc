"""Faults that distillation code is known for. Each detector passes here, and fails where its fault is planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses.kd import KD
from kd_lightning.metrics import ClassificationMetrics
from kd_lightning.teachers import ModelTeacher, Teacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from tests.reference import kd as reference
from tests.training.small import copied, mlp, samples, shaky, still, trainer
from tests.training.test_student_checkpoint import Adapted

Detector = Callable[[DistillationModule, DigitsDataModule], None]


def optimized_by(fit: pl.Trainer) -> set[int]:
    return {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}


# -- detectors --------------------------------------------------------------------------------------------------------


def teacher_in_train_mode(module: DistillationModule, data: DigitsDataModule) -> None:
    module.attach(data)
    module.train()
    batch, weights = samples(data, "train", 64), copied(module.teacher)
    before = module.teacher(batch).logits
    trainer(limit_train_batches=3).fit(module, datamodule=data)
    assert torch.equal(module.teacher(batch).logits, before)
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in module.teacher.state_dict().items()
    )


def teacher_in_the_optimizer(
    module: DistillationModule, data: DigitsDataModule
) -> None:
    fit = trainer(limit_train_batches=1)
    fit.fit(module, datamodule=data)
    teachers = {id(p) for p in module.teacher.parameters()}
    assert teachers
    assert not optimized_by(fit) & teachers


class Thaw(pl.Callback):
    """Lets the teacher's parameters take gradients, as code that freezes nothing would, and counts those that do."""

    reached: tuple[int, int] = (0, 0)

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        for parameter in pl_module.teacher.parameters():
            parameter.requires_grad = True

    def on_after_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        student, teacher = (
            [p.grad for p in m.parameters()] for m in (pl_module.net, pl_module.teacher)
        )
        self.reached = (
            sum(g is not None for g in student),
            sum(g is not None for g in teacher),
        )


def gradient_in_the_teacher(module: DistillationModule, data: DigitsDataModule) -> None:
    thaw = Thaw()
    trainer(limit_train_batches=1, callbacks=[thaw]).fit(module, datamodule=data)
    assert all(p.requires_grad for p in module.teacher.parameters())
    assert thaw.reached == (len(list(module.net.parameters())), 0)


def squared_temperature_dropped(
    module: DistillationModule, data: DigitsDataModule
) -> None:
    module.optimizer, fit = still, trainer()
    fit.fit(module, datamodule=data)
    batch = samples(data, "train")
    with torch.no_grad():
        student, teacher = (
            module.eval()(batch.inputs).tolist(),
            module.teacher(batch).logits.tolist(),
        )
    expected = reference.kd(student, teacher, 4.0)
    assert fit.callback_metrics["train_loss_kd"].item() == pytest.approx(
        expected, rel=1e-4
    )


def adapter_not_optimized(module: DistillationModule, data: DigitsDataModule) -> None:
    fit = trainer(limit_train_batches=2)
    fit.fit(module, datamodule=data)
    adapters = list(module.losses.parameters())
    assert adapters
    assert {id(p) for p in adapters} <= optimized_by(fit)


def step_that_logs(module: DistillationModule, data: DigitsDataModule) -> None:
    original_step, original_log = module.training_step, module.log

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("logged in a training step")

    def updates() -> int:
        return sum(m._update_count for m in module.modules() if isinstance(m, Metric))

    def step(batch: Batch, batch_idx: int) -> Tensor:
        module.__dict__["log"], before = forbidden, updates()
        total = original_step(batch, batch_idx)
        module.__dict__["log"] = original_log
        assert updates() == before
        return total

    module.__dict__["training_step"] = step
    fit = trainer(limit_train_batches=3)
    fit.fit(module, datamodule=data)
    assert (
        "train_loss" in fit.callback_metrics
    )  # logged all the same, once the epoch is over
    assert "val_accuracy" in fit.callback_metrics


# -- faults -----------------------------------------------------------------------------------------------------------


class Restless(ModelTeacher):
    """Follows its owner into train mode."""

    train = nn.Module.train


class Greedy(DistillationModule):
    """Gives the optimizer all there is."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer(self.parameters())


class Forgetful(DistillationModule):
    """Gives the optimizer the student alone."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer(self.net.parameters())


class Late(Adapted):
    """Makes its adapter in the first step, when the optimizer exists already."""

    def build(self, *_: Any) -> None:
        self.adapter = nn.Identity()

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        if isinstance(self.adapter, nn.Identity):
            self.adapter = nn.Linear(10, 10)
        return super().forward(student, teacher, batch)


class Talkative(DistillationModule):
    """Logs every step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total = super().training_step(batch, batch_idx)
        self.log("loss", total)
        return total


class Counting(DistillationModule):
    """Measures every step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        metrics = self.metrics
        assert isinstance(metrics, ClassificationMetrics)
        metrics.nll.update(torch.zeros(1))
        return super().training_step(batch, batch_idx)


def without_square(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def made(
    kind: type[DistillationModule] = DistillationModule, teacher: Teacher | None = None
) -> DistillationModule:
    return kind(mlp(), teacher or ModelTeacher(network=shaky()), {"kd": KD(4.0)})


def with_adapter(
    kind: type[DistillationModule] = DistillationModule, loss: type[Adapted] = Adapted
) -> DistillationModule:
    return kind(mlp(), ModelTeacher(network=shaky()), {"adapted": loss()})


SOUND: list[Detector] = [
    teacher_in_train_mode,
    teacher_in_the_optimizer,
    gradient_in_the_teacher,
    squared_temperature_dropped,
    adapter_not_optimized,
    step_that_logs,
]

PLANTED: dict[str, tuple[Detector, Callable[[], DistillationModule]]] = {
    "restless teacher": (
        teacher_in_train_mode,
        lambda: made(teacher=Restless(network=shaky())),
    ),
    "greedy optimizer": (teacher_in_the_optimizer, lambda: made(Greedy)),
    "forgotten adapter": (adapter_not_optimized, lambda: with_adapter(Forgetful)),
    "late adapter": (adapter_not_optimized, lambda: with_adapter(loss=Late)),
    "logged step": (step_that_logs, lambda: made(Talkative)),
    "measured step": (step_that_logs, lambda: made(Counting)),
}


@pytest.mark.parametrize("detector", SOUND)
def test_there_is_no(detector: Detector, data: DigitsDataModule) -> None:
    detector(with_adapter() if detector is adapter_not_optimized else made(), data)


@pytest.mark.parametrize("fault", PLANTED)
def test_planted(fault: str, data: DigitsDataModule) -> None:
    detector, make = PLANTED[fault]
    with pytest.raises(AssertionError):
        detector(make(), data)


def test_planted_gradient(
    data: DigitsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Teacher, "forward", lambda self, batch: self.outputs(batch))
    monkeypatch.setattr(Output, "detached", lambda self: self)
    with pytest.raises(AssertionError):
        gradient_in_the_teacher(made(), data)


def test_planted_temperature(
    data: DigitsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_lightning.losses.kd.soft_target_kl", without_square)
    with pytest.raises(AssertionError):
        squared_temperature_dropped(made(), data)
