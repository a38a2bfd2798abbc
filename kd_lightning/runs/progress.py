"""Shows the progress of a run: one line in a terminal, a line now and then in a log file."""

from __future__ import annotations

import math
import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
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
from kd_lightning.types import Batch

LINE_EVERY_S = 20
"""Time between two lines in a log file, in seconds."""


def clock(seconds: float) -> str:
    """A duration as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class RunProgress(ProgressBar):
    """Shows the finished epochs, the metrics of the last one and the time left.

    It only reads a clock in each step and redraws a few times per second. In a log file a line
    appears every `LINE_EVERY_S` seconds, within long epochs, too.

    Args:
        label: stands before the bar.
        monitor: the metric that is shown beside the loss.
        every_s: least time between two redraws, in seconds.
    """

    def __init__(
        self,
        label: str = "training",
        monitor: str = "val_accuracy",
        every_s: float = 0.25,
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
        self._first_epoch = 0.0
        self._finished_epochs: int | None = None
        self._next_line_at = time.monotonic() + LINE_EVERY_S

    def disable(self) -> None:
        """Show nothing; Lightning calls this in all processes but the main one."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def _metrics(self, trainer: pl.Trainer) -> str:
        """The loss and the monitored metric of the last epoch, as far as they are known."""
        values = trainer.callback_metrics
        shown = []
        for name in self._metric_names:
            if name in values:
                shown.append(f"{name} {float(values[name]):.4f}")
        return "  ".join(shown)

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Start the clock, and the bar in a terminal.

        Args:
            trainer: that is about to train.
            pl_module: in training.
        """
        if not self._enabled:
            return
        self._started_at = time.monotonic()
        self._first_epoch = float(trainer.current_epoch)
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
            self.label,
            total=_last_epoch(trainer),
            completed=trainer.current_epoch,
            metrics="",
        )
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Move the bar, or print a line, if it is time.

        Args:
            trainer: that trains.
            pl_module: in training.
            outputs: of the step.
            batch: of the step.
            batch_idx: in the epoch.
        """
        # This runs in every step, so it does little more than read a clock.
        now = time.monotonic()
        batches = max(1, trainer.num_training_batches)
        epochs_done = trainer.current_epoch + (batch_idx + 1) / batches
        if self._bar is None:
            # The line at the end of the epoch says the same and more.
            if self._enabled and now >= self._next_line_at and batch_idx + 1 < batches:
                self._print_line(
                    trainer, epochs_done, f"  batch {batch_idx + 1}/{batches}"
                )
            return
        # Drawing takes longer than a step of a small network.
        if now - self._drawn_at < self.every_s:
            return
        self._drawn_at = now
        self._bar.update(self._task, completed=round(epochs_done, 2), refresh=True)

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Show the epoch before this one.

        Args:
            trainer: that trains.
            pl_module: in training.
        """
        self._show_finished(trainer)

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Note that an epoch is finished.

        Args:
            trainer: that trains.
            pl_module: in training.
        """
        # The module logs its losses after this hook, so the epoch is shown in the next one.
        self._finished_epochs = trainer.current_epoch + 1

    def _show_finished(self, trainer: pl.Trainer) -> None:
        """Show the epoch that has just ended, if there is one, with the metrics of that epoch."""
        epochs_done = self._finished_epochs
        self._finished_epochs = None
        if epochs_done is None:
            return
        if self._bar is not None:
            self._bar.update(
                self._task, completed=epochs_done, metrics=self._metrics(trainer)
            )
        elif self._enabled and time.monotonic() >= self._next_line_at:
            self._print_line(trainer, epochs_done, f"  {self._metrics(trainer)}")

    def _print_line(self, trainer: pl.Trainer, epochs_done: float, state: str) -> None:
        """Print the epoch, the state of the run and the time left, if the end is known."""
        now = time.monotonic()
        self._next_line_at = now + LINE_EVERY_S
        last = _last_epoch(trainer)
        epoch = str(math.ceil(epochs_done))
        left = ""
        if last is not None:
            epoch = f"{epoch}/{last}"
            # A resumed run has not spent time on the epochs before it.
            done = max(1e-9, epochs_done - self._first_epoch)
            per_epoch_s = (now - self._started_at) / done
            left_s = per_epoch_s * max(0.0, last - epochs_done)
            left = f"  {clock(left_s)} left"
        self.console.print(f"{self.label}: epoch {epoch}{state}{left}", soft_wrap=True)

    def _stop(self) -> None:
        """Draw the bar once more, and leave it where it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last epoch, and remove the bar.

        Args:
            trainer: that has trained.
            pl_module: that was trained.
        """
        self._show_finished(trainer)
        self._stop()

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        exception: BaseException,
    ) -> None:
        """Remove the bar, so that the error's message stands in a line of its own.

        Args:
            trainer: that fails.
            pl_module: in training.
            exception: on its way.
        """
        self._stop()


def _last_epoch(trainer: pl.Trainer) -> int | None:
    """The number of epochs of the whole training; `None` if it has no end in epochs."""
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0:
        return epochs
    return None
