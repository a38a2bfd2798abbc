"""Checkpoints of a run: after each epoch, and where a signal stops it."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """`last.ckpt` or `best.ckpt`. A class of its own: a user's ModelCheckpoint beside it is another callback to Lightning."""

    @functools.cached_property
    def state_key(self) -> str:
        return super().state_key  # Lightning asks six times a step, and makes it anew each time


class StopAtStep(pl.Callback):
    """Ctrl-C and SIGTERM let the step under way end, keep a checkpoint of it, and then stop; a second one stops at once.

    A validation under way is finished first. On several devices, whose processes would stop at different steps, signals
    are left as they are.

    Args:
        path: of the checkpoint.
    """

    AGAIN_S = 1.0
    """So soon after the first it is the same signal: a terminal sends one to every process, `kd reproduce` to its workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked: float | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            if (
                sys.stderr.isatty()
            ):  # written as it is: the signal may have come in the middle of another print
                os.write(
                    sys.stderr.fileno(), b"\nkd: stops after this step; once more to stop at once\n"
                )
        elif now - self._asked > self.AGAIN_S:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, out: Any, batch: Any, at: int
    ) -> None:
        if self._asked is None:
            return
        if (
            trainer.is_last_batch
            or trainer.global_step == trainer.max_steps
            or (at + 1) % trainer.accumulate_grad_batches
        ):
            return  # the end of the epoch keeps one; gradients that wait for more are in none
        done = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else at
        if trainer.val_check_batch is None or (done + 1) % trainer.val_check_batch:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self.on_train_epoch_start(trainer, pl_module)
