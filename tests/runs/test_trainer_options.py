"""Options of the Trainer that work under `kd fit`, or are refused in one line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.launch import launch
from kd_lightning.training import ClassifierModule
from kd_lightning.types import Batch
from tests.runs import TEACHER, Kd, student
from tests.training.small import complaint, copied, distillation, same, trainer

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=3"]


def callback(name: str, **arguments: Any) -> str:
    described = {
        "class_path": f"lightning.pytorch.callbacks.{name}",
        "init_args": arguments,
    }
    return f"--trainer.callbacks={json.dumps([described])}"


NO_SCHEDULE = "--model.scheduler=null"

REFUSED = {
    "16-mixed": (["--trainer.precision=16-mixed"], "16-mixed needs a GPU"),
    "rate finder": ([callback("LearningRateFinder")], "LearningRateFinder cannot set"),
    "batch finder": ([callback("BatchSizeFinder")], "set --data.batch_size"),
    "backbone": ([callback("BackboneFinetuning")], "--model.parameter_groups"),
    "least epochs": (["--trainer.min_epochs=5"], "beyond --trainer.max_epochs=1"),
    "root": (["--trainer.default_root_dir=x"], "has no effect; use --run.root"),
    "no checkpoints": (
        ["--trainer.fast_dev_run=true", "--run.test=best"],
        "fast_dev_run writes no checkpoints; use --run.test=last",
    ),
    "early stopping": (
        [callback("EarlyStopping", monitor="val_acc")],
        "EarlyStopping monitors 'val_acc', which is not logged; logged are train_loss, "
        "train_loss_ce, learning_rate, val_accuracy, val_calibration_error, val_errors, val_nll",
    ),
    "checkpoint": (
        [callback("ModelCheckpoint", monitor="val_teacher_kl")],
        "ModelCheckpoint monitors 'val_teacher_kl'",
    ),
    "plateau": (
        [
            "--model.scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.scheduler.monitor=loss",
        ],
        "ReduceLROnPlateau monitors 'loss'",
    ),
    "no end": (
        ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"],
        "set --trainer.max_epochs or --trainer.max_steps",
    ),
    "rates without a logger": (
        ["--trainer.logger=false", callback("LearningRateMonitor")],
        "LearningRateMonitor needs a logger",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, kd: Kd) -> None:
    options, expected = REFUSED[kind]
    result = kd(*TEACHER, *options)
    assert result.code == 2
    assert expected in result.err
    assert result.err.count("\n") == 1
    assert not Path("runs").exists()


class Quiet(pl.Callback):
    """A user's own callback, which might log metrics of its own."""


def test_a_metric_that_is_found_missing_in_training(kd: Kd) -> None:
    for name in ("EarlyStopping", "ModelCheckpoint"):
        described = [
            {"class_path": f"{__name__}.Quiet"},
            {
                "class_path": f"lightning.pytorch.callbacks.{name}",
                "init_args": {"monitor": "val_acc"},
            },
        ]
        result = kd(*TEACHER, f"--trainer.callbacks={json.dumps(described)}", *QUICK)
        assert result.code == 2
        assert "val_accuracy" in result.err
        assert result.err.count("\n") == 1


def test_time_alone_with_a_rate_that_has_no_end(kd: Kd) -> None:
    options = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:01", NO_SCHEDULE]
    assert kd(*TEACHER, *options, *QUICK).code == 0


def test_a_callback_with_an_enum_and_a_progress_bar_of_the_users(kd: Kd) -> None:
    described = [
        {
            "class_path": "lightning.pytorch.callbacks.Timer",
            "init_args": {"duration": "00:01:00:00", "interval": "epoch"},
        },
        {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
    ]
    steps = "--trainer.limit_train_batches=1"
    result = kd(*TEACHER, f"--trainer.callbacks={json.dumps(described)}", steps)
    assert result.code == 0, result.err
    config = "runs/digits-mlp/config.yaml"
    assert "interval: epoch" in Path(config).read_text()
    # The config is read back as it was.
    assert kd("fit", "-c", config, steps, "--run.name=again").code == 0
    assert "interval: epoch" in Path("runs/again/config.yaml").read_text()


def test_no_logger_writes_none(kd: Kd) -> None:
    assert (
        kd(*TEACHER, "--trainer.logger=false", "--run.wandb=offline", *QUICK).code == 0
    )
    (folder,) = Path("runs").iterdir()
    assert not (folder / "metrics.csv").exists()
    assert not list(folder.rglob("*wandb*"))


def test_tensorboard(kd: Kd) -> None:
    result = kd(*TEACHER, "-c", "configs/loggers/tensorboard.yaml", *QUICK)
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        assert result.code == 2
        assert "tensorboard" in result.err
        assert result.err.count("\n") == 1
    else:
        assert result.code == 0
        assert list(Path("runs/tensorboard").rglob("events.*"))


@pytest.mark.parametrize("name", ["adamw_warmup_cosine", "reduce_on_plateau"])
def test_shipped_optimizers(name: str, kd: Kd) -> None:
    assert kd(*TEACHER, "-c", f"configs/optimizers/{name}.yaml", *QUICK).code == 0


# -- averaged weights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "average",
    [
        callback("EMAWeightAveraging", decay=0.5),
        callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1),
    ],
)
def test_averages_of_a_distilled_student(
    average: str, teacher: Path, tmp_path: Path
) -> None:
    """The tested weights are those of the checkpoint."""
    arguments = [
        *student(teacher),
        NO_SCHEDULE,
        average,
        "--trainer.max_epochs=3",
        *QUICK,
    ]
    run = launch([*arguments, "--run.test=last", f"--run.dir={tmp_path / 'run'}"])
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    trained = {name: state[f"student.{name}"] for name in run.module.net.state_dict()}
    assert same(copied(run.module.net), trained)
    config = str(run.folder / "config.yaml")
    last = f"--ckpt_path={run.folder / 'checkpoints' / 'last.ckpt'}"
    again = launch(["test", "-c", config, last, "--trainer.callbacks=null"])
    assert again.metrics["test_nll"] == run.metrics["test_nll"]


def averaged(folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """The final mean after two epochs, resumed after the first if there is a checkpoint."""
    torch.manual_seed(0)
    module = distillation()
    checkpoint = pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    ema = pl.callbacks.EMAWeightAveraging(decay=0.5)
    run = trainer(
        max_epochs=2,
        callbacks=[ema, checkpoint],
        enable_checkpointing=True,
        limit_train_batches=3,
    )
    run.fit(module, datamodule=DigitsDataModule(), ckpt_path=resume)
    return copied(module.net)


def test_resume_under_averaging_is_exact(tmp_path: Path) -> None:
    whole = averaged(tmp_path / "whole")
    assert same(
        whole, averaged(tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    )


def test_stochastic_averaging_measures_batch_norm_anew() -> None:
    """Lightning appends an epoch for the statistics of the mean."""
    swa = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    module = ClassifierModule(batch_norm())
    run = trainer(max_epochs=3, callbacks=[swa], limit_train_batches=3)
    run.fit(module, datamodule=DigitsDataModule())
    run.test(module, datamodule=DigitsDataModule(), verbose=False)
    assert run.callback_metrics["test_nll"].isfinite()


# -- batches -----------------------------------------------------------------------------------


class Seen(pl.Callback):
    """The samples of each batch, by epoch."""

    def __init__(self) -> None:
        self.rows: dict[int, list[list[int]]] = {}

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self.rows.setdefault(trainer.current_epoch, []).append(batch.index.tolist())


@pytest.mark.parametrize("overfit", [0, 2])
def test_overfitting_repeats_the_same_batches(overfit: int) -> None:
    seen = Seen()
    limit = {"overfit_batches": overfit} if overfit else {"limit_train_batches": 2}
    run = trainer(max_epochs=2, callbacks=[seen], **limit)
    run.fit(distillation(), datamodule=DigitsDataModule())
    assert (seen.rows[0] == seen.rows[1]) == bool(overfit)


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
    )


def test_a_last_batch_of_one() -> None:
    data = DigitsDataModule(batch_size=16)
    samples = data.spec.samples["train"]
    data.batch_size = samples - 1
    message = complaint(lambda: ClassifierModule(batch_norm()).attach(data))
    assert message.startswith(
        "the network Sequential cannot train on a batch of one sample"
    )
    assert "drop_last" in message
    data.drop_last = True
    trainer().fit(ClassifierModule(batch_norm()), datamodule=data)
    assert len(data.loader("train")) == 1
    assert len(list(data.loader("train"))) == 1
