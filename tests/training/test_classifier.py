"""Training on labels alone, and what both modules share: where weights come from, steps, logged losses, mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.models import MLP
from kd_lightning.runs.launch import RunResult
from kd_lightning.training import ClassifierModule, TrainingModule
from kd_lightning.training.optimizers import default_optimizer, optimize
from kd_lightning.types import Batch, Output
from tests.reference import hard
from tests.training.small import complaint, copied, mlp, same, samples, still, trainer


class Labels(DistillLoss):
    """Cross-entropy that is replaced by a value from some call on."""

    uses_teacher = False

    def __init__(self, calls: int, value: float) -> None:
        super().__init__()
        self.calls, self.value = calls, value

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        self.calls -= 1
        loss: Tensor = CrossEntropy()(student, teacher, batch)
        return loss if self.calls >= 0 else loss * self.value


class Norms(pl.Callback):
    """The largest norm of the weights into a hidden unit, as each step leaves it."""

    def __init__(self) -> None:
        self.after_step: list[float] = []
        self.before_next: list[float] = []

    @staticmethod
    def largest(module: pl.LightningModule) -> float:
        assert isinstance(module, ClassifierModule)
        assert isinstance(module.net, MLP)
        return max(
            float(m.weight.norm(dim=1).max())
            for m in module.net.body
            if isinstance(m, nn.Linear)
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.after_step.append(self.largest(pl_module))

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step:
            self.before_next.append(self.largest(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before_next.append(self.largest(pl_module))


def mean_nll(module: TrainingModule, batch: Batch) -> float:
    return hard.cross_entropy(
        module.eval()(batch.inputs).tolist(), batch.target.tolist()
    )


def test_a_fit_lowers_the_loss(data: DigitsDataModule) -> None:
    module, batch = ClassifierModule(mlp()), samples(data, "train")
    before = mean_nll(module, batch)
    trainer(max_epochs=2).fit(module, datamodule=data)
    assert mean_nll(module, batch) < 0.7 * before


def test_the_logged_loss_is_the_mean_over_samples(data: DigitsDataModule) -> None:
    """The last batch is smaller than the others; a mean over batches would give its samples too much weight."""
    data.batch_size = 500
    module, fit, batch = (
        ClassifierModule(mlp(), optimizer=still),
        trainer(),
        samples(data, "train"),
    )
    fit.fit(module, datamodule=data)
    expected = mean_nll(module, batch)
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(
        expected, rel=1e-6
    )
    assert fit.callback_metrics["train_loss_ce"].item() == pytest.approx(
        expected, rel=1e-6
    )
    assert fit.callback_metrics["learning_rate"].item() == 0.0


@pytest.mark.parametrize("kind", ["checkpoint", "weights.pt", "weights.safetensors"])
def test_starts_from_those_weights(
    kind: str,
    teacher_run: RunResult,
    checkpoint: Path,
    tmp_path: Path,
    data: DigitsDataModule,
) -> None:
    wanted, path = copied(teacher_run.module.net), tmp_path / kind
    if kind == "checkpoint":
        path = checkpoint
    elif kind == "weights.pt":
        torch.save(wanted, path)
    else:
        save_file(wanted, path)
    network = MLP([256, 256], dropout=0.3, input_shape=[1, 8, 8], num_classes=10)
    assert not same(copied(network), wanted)
    trainer().fit(
        ClassifierModule(network, init_from=str(path), optimizer=still), datamodule=data
    )
    assert same(copied(network), wanted)


def test_starts_from_a_wrong_file(
    checkpoint: Path, tmp_path: Path, data: DigitsDataModule
) -> None:
    def start(path: Path) -> str:
        module = ClassifierModule(mlp(), init_from=str(path))
        weights = copied(module.net)
        message = complaint(lambda: trainer().fit(module, datamodule=data))
        assert same(copied(module.net), weights)
        return message

    assert f"init_from: there is no file {tmp_path / 'none.pt'}" in start(
        tmp_path / "none.pt"
    )
    assert (
        f"init_from {checkpoint}: 'body.1.weight' is (256, 64) in the weights and (16, 64) in MLP"
        in start(checkpoint)
    )
    (tmp_path / "text.pt").write_text("no weights")
    assert "cannot be read" in start(tmp_path / "text.pt")


@pytest.mark.parametrize("max_norm", [0.3, None])
def test_max_norm_holds_after_each_step(
    max_norm: float | None, data: DigitsDataModule
) -> None:
    norms = Norms()
    trainer(callbacks=[norms]).fit(
        ClassifierModule(mlp(max_norm=max_norm)), datamodule=data
    )
    assert len(norms.before_next) == len(data.train_dataloader())
    # Without the constraint every step leaves longer weights: the test can fail.
    assert all(
        (norm <= 0.3 + 1e-6) == (max_norm is not None) for norm in norms.before_next
    )


def test_max_norm_holds_in_a_checkpoint_of_a_step(data: DigitsDataModule) -> None:
    norms = Norms()
    trainer(callbacks=[norms]).fit(ClassifierModule(mlp(max_norm=0.3)), datamodule=data)
    assert max(norms.after_step) <= 0.3 + 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_fit(
    value: float, data: DigitsDataModule
) -> None:
    steps = len(data.train_dataloader())
    trainer(max_epochs=2).fit(
        ClassifierModule(mlp(), {"hard": Labels(2 * steps, value)}), datamodule=data
    )
    module = ClassifierModule(mlp(), {"hard": Labels(2 * steps - 1, value)})
    message = complaint(lambda: trainer(max_epochs=2).fit(module, datamodule=data))
    assert message.startswith(f"the loss became {value} in epoch 1")
    assert "lower the learning rate" in message


def test_max_steps_within_an_epoch(data: DigitsDataModule) -> None:
    fit = trainer(max_epochs=-1, max_steps=3)
    fit.fit(ClassifierModule(mlp()), datamodule=data)
    assert "train_loss" in fit.callback_metrics
    module = ClassifierModule(mlp(), {"hard": Labels(0, math.nan)})
    complaint(lambda: trainer(max_epochs=-1, max_steps=3).fit(module, datamodule=data))


def test_validate_first(
    teacher_run: RunResult, checkpoint: Path, data: DigitsDataModule
) -> None:
    network = MLP([256, 256], dropout=0.3, input_shape=[1, 8, 8], num_classes=10)
    module = ClassifierModule(network, init_from=str(checkpoint), optimizer=still)
    trainer().validate(module, datamodule=data, verbose=False)
    trainer().fit(module, datamodule=data)
    assert same(copied(network), copied(teacher_run.module.net))


def test_a_scheduler_is_told_the_number_of_steps(teacher_run: RunResult) -> None:
    """One-cycle ends at max_lr / 25 / 10,000 after the last step; the logged rate is that of the last step."""
    assert 0 < teacher_run.metrics["learning_rate"] < 0.3 / 25


MISTAKES: dict[str, tuple[Callable[[], TrainingModule], str]] = {
    "no losses": (lambda: ClassifierModule(mlp(), {}), "model.losses is empty"),
    "a loss without its teacher": (
        lambda: ClassifierModule(mlp(), {"soft": KD()}),
        "the loss 'soft' needs a teacher",
    ),
    "classes": (
        lambda: ClassifierModule(mlp(classes=7)),
        "MLP gives outputs of shape [7] per sample; the data digits has 10",
    ),
    "one logit": (
        lambda: ClassifierModule(mlp(classes=1)),
        "MLP gives outputs of shape [1] per sample; the data digits has 10",
    ),
    "inputs": (
        lambda: ClassifierModule(nn.Linear(3, 10)),
        "Linear cannot read inputs of shape [1, 8, 8]",
    ),
    "no logits": (
        lambda: ClassifierModule(nn.LSTM(8, 10)),
        "LSTM cannot read inputs of shape [1, 8, 8]",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind: str, data: DigitsDataModule) -> None:
    make, words = MISTAKES[kind]
    assert words in complaint(lambda: make().attach(data))


def test_no_datamodule() -> None:
    maps = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), torch.arange(2))
    message = complaint(lambda: trainer().fit(ClassifierModule(mlp()), [[maps]]))
    assert "give the Trainer a datamodule" in message


def test_a_schedule_of_too_few_steps_is_one_line() -> None:
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, pct_start=0.1)
    with pytest.raises(UserError, match="too few steps for its schedule"):
        optimize(
            default_optimizer,
            schedule,
            [torch.nn.Parameter(torch.zeros(1))],
            lambda: 10,
        )
