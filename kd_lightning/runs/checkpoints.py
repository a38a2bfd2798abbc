"""The checkpoints of a run: after every epoch, and at the step after which a signal stops it."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from kd_lightning.training import lightning_compat
from kd_lightning.types import Batch


class RunCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` or `best.ckpt`.

    Lightning identifies a callback by its class and settings. A class of its own keeps this one
    apart from a user's ModelCheckpoint.
    """

    @functools.cached_property
    def state_key(self) -> str:
        """Identifies this callback. Lightning reads it about six times per step."""
        return super().state_key


class StopAtStep(pl.Callback):
    """Saves a checkpoint and stops the training at the step in which Ctrl-C or SIGTERM arrives.

    A second signal stops it at once. A validation that is running is finished first. If there are
    several devices, signals keep their usual effect, because the processes would stop at different
    steps.

    Args:
        path: of the checkpoint.
    """

    AGAIN_S = 1.0
    """A signal within this time of the first is the same one, in seconds.

    A terminal sends Ctrl-C to every process, and `kd reproduce` forwards it to its workers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signalled_at: float | None = None
        self._earlier_handlers: dict[int, Any] = {}

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Take over the signals, unless they are ignored or other threads would miss them.

        Args:
            trainer: that is about to train.
            pl_module: in training.
        """
        # Python lets only the main thread set handlers.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if trainer.world_size > 1 or not in_main_thread:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:
                self._earlier_handlers[number] = handler
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; stop at once at a later one."""
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            if sys.stderr.isatty():
                # Unbuffered: the signal may have interrupted another print.
                message = b"\nkd: stops after this step; press Ctrl-C again to stop immediately\n"
                os.write(sys.stderr.fileno(), message)
        elif now - self._signalled_at > self.AGAIN_S:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Save a checkpoint and stop, after a signal and a step from which a run can resume.

        Args:
            trainer: that trains.
            pl_module: in training.
            outputs: of the step.
            batch: of the step.
            batch_idx: in the epoch.

        Raises:
            KeyboardInterrupt: after a signal.
        """
        if self._signalled_at is None:
            return
        if trainer.is_last_batch or trainer.global_step == trainer.max_steps:
            # The checkpoint of the epoch follows.
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            # A checkpoint does not hold accumulated gradients.
            return
        if lightning_compat.validates_after(trainer, batch_idx):
            return
        trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Stop between two epochs, whose checkpoint is written by now.

        Args:
            trainer: that trains.
            pl_module: in training.

        Raises:
            KeyboardInterrupt: after a signal.
        """
        if self._signalled_at is not None:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back.

        Args:
            trainer: that has trained.
            pl_module: that was trained.

        Raises:
            KeyboardInterrupt: after a signal, so that no test follows.
        """
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        if self._signalled_at is not None:
            raise KeyboardInterrupt
