"""Progress of a run: one line with time left, redrawn a few times a second; in a log file, a line now and then."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class RunProgress(ProgressBar):
    """Shows epochs done, the latest metrics and the time left. Costs a clock reading a step.

    Args:
        label: stands before the bar.
        monitor: the metric that is shown beside the loss.
        every_s: least seconds between two redraws.
    """

    def __init__(
        self, label: str = "training", monitor: str = "val_accuracy", every_s: float = 0.25
    ) -> None:
        super().__init__()
        self._shown = ("train_loss", monitor)
        self.label, self.every_s = label, every_s
        self.console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._enabled = True
        self._next_line = time.monotonic() + 20

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _metrics(self, trainer: pl.Trainer) -> str:
        values = trainer.callback_metrics
        return "  ".join(
            f"{name} {float(values[name]):.4f}" for name in self._shown if name in values
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._started, self._first = time.monotonic(), trainer.current_epoch
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs"),
            )
            self._bar = Progress(
                *columns,
                TextColumn("{task.fields[metrics]}"),
                TimeRemainingColumn(),
                console=self.console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(
                self.label, total=trainer.max_epochs, completed=trainer.current_epoch, metrics=""
            )
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is None or (now := time.monotonic()) - self._drawn < self.every_s:
            return
        self._drawn = now
        done = trainer.current_epoch + (batch_idx + 1) / max(1, trainer.num_training_batches)
        self._bar.update(self._task, completed=round(done, 2), refresh=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=done, metrics=self._metrics(trainer))
        elif self._enabled and time.monotonic() >= self._next_line:
            # Without a terminal: a line every 20 seconds or so.
            self._next_line = time.monotonic() + 20
            elapsed = time.monotonic() - self._started
            left = elapsed / max(1, done - self._first) * ((trainer.max_epochs or done) - done)
            self.console.print(
                f"{self.label}: epoch {done}/{trainer.max_epochs}  {self._metrics(trainer)}  {left:.0f} s left"
            )

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()
