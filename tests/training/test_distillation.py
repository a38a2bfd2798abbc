"""Training against a teacher: the total, its schedule, unlabelled samples, precision, first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from kd_lightning.weights import network_weights
from tests.reference import hard
from tests.reference import kd as reference
from tests.training.small import (
    complaint,
    copied,
    distillation,
    last,
    mlp,
    run_fit,
    same,
    samples,
    still,
    trainer,
)

TEMPERATURE = 4.0


def parts(module: DistillationModule, batch: Batch) -> tuple[float, float]:
    """The hard and the soft loss of a batch, by the reference, from the logits alone."""
    module.eval()
    with torch.no_grad():
        student, teacher = (
            module(batch.inputs).tolist(),
            module.teacher(batch).logits.tolist(),
        )
    return hard.cross_entropy(student, batch.target.tolist()), reference.kd(
        student, teacher, TEMPERATURE
    )


class Losses(pl.Callback):
    """The logged losses of each epoch: they are there when the next one starts."""

    def __init__(self) -> None:
        self.totals: list[float] = []

    def note(self, trainer: pl.Trainer) -> None:
        if "train_loss" in trainer.callback_metrics:
            self.totals.append(trainer.callback_metrics["train_loss"].item())

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.note(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(trainer)


class Listening(ModelTeacher):
    """Notes the precision in which it is asked."""

    def __init__(self) -> None:
        super().__init__(network=mlp(32))
        self.heard: list[tuple[torch.dtype, torch.dtype, torch.dtype]] = []

    def outputs(self, batch: Batch) -> Output:
        output = super().outputs(batch)
        assert isinstance(batch.inputs, torch.Tensor)
        self.heard.append(
            (batch.inputs.dtype, next(self.parameters()).dtype, output.logits.dtype)
        )
        return output


def test_a_fit_lowers_both_losses(data: DigitsDataModule, checkpoint: Path) -> None:
    module, batch = (
        distillation(teacher=ModelTeacher(str(checkpoint))),
        samples(data, "train"),
    )
    module.attach(data)
    before = parts(module, batch)
    trainer(max_epochs=2).fit(module, datamodule=data)
    after = parts(module, batch)
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]


def test_the_total_is_the_weighted_sum(data: DigitsDataModule) -> None:
    module, fit = distillation(optimizer=still), trainer()
    fit.fit(module, datamodule=data)
    ce, kd = parts(module, samples(data, "train"))
    assert fit.callback_metrics["train_loss_ce"].item() == pytest.approx(ce, rel=1e-5)
    assert fit.callback_metrics["train_loss_kd"].item() == pytest.approx(kd, rel=1e-5)
    assert fit.callback_metrics["train_loss"].item() == pytest.approx(
        0.5 * ce + 2.0 * kd, rel=1e-5
    )


def test_start_end_and_warmup_change_the_total(data: DigitsDataModule) -> None:
    losses = {
        "ce": CrossEntropy(weight=0.5, end=2),
        "kd": KD(TEMPERATURE, weight=2.0, start=1, warmup=2),
    }
    module, noted = distillation(dict(losses), optimizer=still), Losses()
    trainer(max_epochs=4, callbacks=[noted]).fit(module, datamodule=data)
    ce, kd = parts(module, samples(data, "train"))
    assert noted.totals == pytest.approx(
        [0.5 * ce, 0.5 * ce + kd, 2 * kd, 2 * kd], rel=1e-5
    )


def test_unlabelled_samples_teach_by_the_soft_loss_alone() -> None:
    def trained(
        data: DigitsDataModule, **losses: Any
    ) -> tuple[DistillationModule, pl.Trainer]:
        torch.manual_seed(0)
        module, fit = distillation(losses), trainer()
        fit.fit(module, datamodule=data)
        return module, fit

    both, fit = trained(
        DigitsDataModule(label_fraction=0.0), ce=CrossEntropy(), kd=KD()
    )
    soft, _ = trained(DigitsDataModule(), kd=KD())
    labelled, _ = trained(DigitsDataModule(), ce=CrossEntropy(), kd=KD())
    assert same(copied(both.net), copied(soft.net))
    assert not same(copied(both.net), copied(labelled.net))
    assert fit.callback_metrics["train_loss_ce"].item() == 0.0
    assert fit.callback_metrics["train_loss"] == fit.callback_metrics["train_loss_kd"]


def test_predictions(data: DigitsDataModule) -> None:
    module = distillation()
    outputs: Any = trainer().predict(module, datamodule=data)
    assert all(o.keys() == {"logits", "index"} for o in outputs)
    batch = samples(data, "test")
    index = torch.cat([o["index"] for o in outputs])
    assert torch.equal(index, batch.index)
    assert torch.allclose(
        torch.cat([o["logits"] for o in outputs]),
        module.eval()(batch.inputs),
        atol=1e-6,
    )
    assert not module.teacher.ready  # prediction does without a teacher


PRECISION = {
    "32-true": (torch.float32, torch.float32, torch.float32),
    "bf16-mixed": (torch.float32, torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "64-true": (torch.float64, torch.float64, torch.float64),
}


@pytest.mark.parametrize("precision", PRECISION)
def test_precision(precision: str, data: DigitsDataModule) -> None:
    def loss(precision: str) -> float:
        torch.manual_seed(0)
        module, fit = distillation(teacher=Listening()), trainer(precision=precision)
        start = copied(module.net)
        fit.fit(module, datamodule=data)
        assert not any(
            torch.equal(tensor.to(start[name]), start[name])
            for name, tensor in module.net.state_dict().items()
        )
        assert isinstance(module.teacher, Listening)
        asked = module.teacher.heard[
            1:
        ]  # the first call is the probe, before the trainer converts anything
        assert asked == [PRECISION[precision]] * (len(data.train_dataloader()) + 1)
        return fit.callback_metrics["train_loss"].item()

    # To the accuracy of the format, a fit in another precision is the same fit.
    assert loss(precision) == pytest.approx(loss("32-true"), rel=2e-2)


@pytest.mark.parametrize("wrong", ["none.ckpt", "text.ckpt"])
def test_a_fit_needs_the_teacher_that_its_losses_ask_for(
    wrong: str, tmp_path: Path, data: DigitsDataModule
) -> None:
    (tmp_path / "text.ckpt").write_text("no weights")
    module = distillation(teacher=ModelTeacher(str(tmp_path / wrong)))
    assert wrong in complaint(lambda: trainer().fit(module, datamodule=data))
    # The student alone, for comparison, can do without; what compares it with the teacher is left out.
    alone, fit = (
        distillation({"ce": CrossEntropy()}, ModelTeacher(str(tmp_path / wrong))),
        trainer(),
    )
    fit.fit(alone, datamodule=data)
    assert alone.teacher_note is not None
    assert wrong in alone.teacher_note
    assert "val_accuracy" in fit.callback_metrics
    assert not any("teacher" in name for name in fit.callback_metrics)


def test_compiled_networks_keep_the_names_of_their_weights(
    data: DigitsDataModule,
) -> None:
    module = distillation()
    names = list(module.state_dict())
    module.compile(backend="eager")
    module.net.compile(backend="eager")
    trainer(limit_train_batches=2, limit_val_batches=1).fit(module, datamodule=data)
    assert list(module.state_dict()) == names


def test_the_first_weights_depend_on_the_seed_alone(
    tmp_path: Path, checkpoint: Path
) -> None:
    still = [
        "--model.optimizer.init_args.lr=0",
        "--model.scheduler=null",
        "--trainer.limit_train_batches=1",
    ]

    def first(
        name: str, configs: list[str], *arguments: str
    ) -> dict[str, torch.Tensor]:
        run = run_fit(tmp_path / name, configs, *still, *arguments)
        return network_weights(torch.load(last(run), weights_only=True))

    pair, teacher = (
        ["pairs/digits_mlp256_mlp16.yaml", "methods/kd.yaml"],
        f"--model.teacher.checkpoint={checkpoint}",
    )
    alone = [
        "--model.network.init_args.hidden=[16]",
        "--model.network.init_args.dropout=0",
    ]
    classifier = first("classifier", ["teachers/digits_mlp.yaml"], *alone)
    distilled = first("distilled", pair, teacher)
    assert same(classifier, distilled)
    # Nor on what the data drew before the student was made.
    assert same(
        first("drawing", pair, teacher, "--data=tests.training.small.Drawing"),
        distilled,
    )
    other = first("other", pair, teacher, "--seed_everything=1")
    assert not same(distilled, other)
