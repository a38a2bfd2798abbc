"""The lines about a run's progress in a log file."""

from __future__ import annotations

import io
from typing import Any

import lightning.pytorch as pl
import pytest
from rich.console import Console

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs import progress
from kd_lightning.runs.progress import RunProgress, clock
from tests.training.small import distillation, trainer


class Metrics(pl.Callback):
    """The values of each epoch, noted when all of them are there."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []

    def _note(self, trainer: pl.Trainer) -> None:
        values = trainer.callback_metrics
        if "train_loss" in values:
            self.values.append(
                (float(values["train_loss"]), float(values["val_accuracy"]))
            )

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self._note(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(trainer)


def lines_of(**settings: Any) -> tuple[list[str], list[tuple[float, float]]]:
    """The printed lines, and the metrics of each epoch."""
    shown = RunProgress("run")
    shown.console = Console(file=io.StringIO(), width=200)
    metrics = Metrics()
    run = trainer(callbacks=[shown, metrics], enable_progress_bar=True, **settings)
    run.fit(distillation(), datamodule=DigitsDataModule())
    file = shown.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines(), metrics.values


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", float("-inf"))


@pytest.mark.usefixtures("always")
def test_a_line_pairs_the_metrics_of_one_epoch() -> None:
    lines, metrics = lines_of(max_epochs=3, limit_train_batches=1)
    assert len(lines) == 3
    for number, (line, (loss, accuracy)) in enumerate(
        zip(lines, metrics, strict=True), start=1
    ):
        expected = f"run: epoch {number}/3  train_loss {loss:.4f}  val_accuracy {accuracy:.4f}  0:00:0"
        assert line.startswith(expected)
        assert line.endswith(" left")


@pytest.mark.usefixtures("always")
def test_lines_within_an_epoch() -> None:
    lines, _ = lines_of(limit_train_batches=3)
    starts = [line.partition("  0:")[0] for line in lines[:2]]
    assert starts == ["run: epoch 1/1  batch 1/3", "run: epoch 1/1  batch 2/3"]
    assert len(lines) == 3


@pytest.mark.usefixtures("always")
def test_a_run_without_a_last_epoch() -> None:
    lines, _ = lines_of(max_epochs=-1, max_steps=2, limit_train_batches=1)
    assert [line.split("  ")[0] for line in lines] == ["run: epoch 1", "run: epoch 2"]
    assert not any("left" in line for line in lines)


def test_short_runs_print_nothing() -> None:
    assert lines_of(limit_train_batches=1)[0] == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (360000, "100:00:00")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected
