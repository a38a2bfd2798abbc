"""Shows the progress of a run: one line in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time

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

from kd_lightning.errors import printable

LINE_EVERY_S = 20
"""Time between two lines in a log file, in seconds."""


class RunProgress(ProgressBar):
    """Shows the finished epochs, the latest metrics and the time left.

    It only reads a clock in each step and redraws a few times per second.

    Args:
        label: stands before the bar.
        monitor: the metric that is shown beside the loss.
        every_s: least time between two redraws, in seconds.
    """

    def __init__(
        self, label: str = "training", monitor: str = "val_accuracy", every_s: float = 0.25
    ) -> None:
        super().__init__()
        # The name of the run's folder, which may hold anything.
        self.label = printable(label)
        self.every_s = every_s
        self.console = Console(markup=False, emoji=False)
        self._metric_names = ("train_loss", monitor)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn_at = 0.0
        self._enabled = True
        self._started_at = 0.0
        self._first_epoch = 0
        self._next_line_at = time.monotonic() + LINE_EVERY_S

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the main one."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def _metrics(self, trainer: pl.Trainer) -> str:
        values = trainer.callback_metrics
        shown = [
            f"{name} {float(values[name]):.4f}" for name in self._metric_names if name in values
        ]
        return "  ".join(shown)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._started_at = time.monotonic()
        self._first_epoch = trainer.current_epoch
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TextColumn("{task.fields[metrics]}", markup=False),
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
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._drawn_at < self.every_s:
            return
        self._drawn_at = now
        batches = max(1, trainer.num_training_batches)
        epochs_done = trainer.current_epoch + (batch_idx + 1) / batches
        self._bar.update(self._task, completed=round(epochs_done, 2), refresh=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs_done = trainer.current_epoch + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=epochs_done, metrics=self._metrics(trainer))
        elif self._enabled and time.monotonic() >= self._next_line_at:
            self._print_line(trainer, epochs_done)

    def _print_line(self, trainer: pl.Trainer, epochs_done: int) -> None:
        now = time.monotonic()
        self._next_line_at = now + LINE_EVERY_S
        epoch_s = (now - self._started_at) / max(1, epochs_done - self._first_epoch)
        left_s = epoch_s * ((trainer.max_epochs or epochs_done) - epochs_done)
        self.console.print(
            f"{self.label}: epoch {epochs_done}/{trainer.max_epochs}  "
            f"{self._metrics(trainer)}  {left_s:.0f} s left"
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
