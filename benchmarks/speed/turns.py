"""A callback that trains a few steps whenever another process says so, and reports their time."""

from __future__ import annotations

import os
import time

import lightning.pytorch as pl

from kd_lightning.types import Batch


class Turns(pl.Callback):
    """Waits for a byte before every `steps` steps, and then writes the seconds that they took.

    Args:
        reader: file descriptor of a pipe with one byte for each turn. If the pipe ends, so does
            the process.
        writer: file descriptor of a pipe that gets one line for each turn: seconds per step.
        steps: optimizer steps of one turn.
    """

    def __init__(self, reader: int, writer: int, steps: int) -> None:
        self.reader = reader
        self.writer = writer
        self.steps = steps
        self.done = 0
        self.started = 0.0

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Report the turn that has ended, and wait for the next one."""
        if self.done % self.steps == 0:
            if self.done > 0:
                seconds = (time.perf_counter() - self.started) / self.steps
                os.write(self.writer, f"{seconds:.9f}\n".encode())
            if not os.read(self.reader, 1):
                # Nothing of this run is kept, so it need not end in good order.
                os._exit(0)
            self.started = time.perf_counter()
        self.done += 1
