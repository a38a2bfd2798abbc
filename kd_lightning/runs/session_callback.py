"""The hooks that write a run's files while it trains, and its curves within an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kd_lightning.files import write_whole_text
from kd_lightning.runs.csv_logger import EpochCSVLogger, Row
from kd_lightning.runs.problems import deleted
from kd_lightning.runs.session import Session
from kd_lightning.training import lightning_compat
from kd_lightning.training.checkpointing import Checkpoint
from kd_lightning.types import Batch

EPOCH_ROW = "kd_epoch_row"
"""The checkpoint's entry for the row of metrics.csv of the epoch that it ends."""

CURVES = "steps.csv"
"""The file of losses within an epoch: one line per `log_every_n_steps` steps."""


class SessionCallback(pl.Callback):
    """Starts a session with the first step, and writes the losses within an epoch.

    Args:
        session: of the run.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._every = 0
        self._steps = 0
        self._epoch_ended = False

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Write the files of the run, and remove the losses of steps that it repeats.

        Args:
            trainer: that is about to train.
            pl_module: in training.
        """
        self.session.start(trainer)
        self._every = lightning_compat.log_every_n_steps(trainer)
        self._steps = trainer.global_step
        _cut_curves(self.session.folder / CURVES, self._steps)

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Note that checkpoints lie within an epoch from now on.

        Args:
            trainer: that trains.
            pl_module: in training.
        """
        self._epoch_ended = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Write and log the loss of every `log_every_n_steps`-th step.

        Args:
            trainer: that trains.
            pl_module: in training.
            outputs: of the step.
            batch: of the step.
            batch_idx: in the epoch.
        """
        self._steps += 1
        if not self._every or self._steps % self._every:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        first_group = trainer.optimizers[0].param_groups[0]
        values = {
            "train_loss_step": float(loss),
            "learning_rate_step": float(first_group["lr"]),
        }
        epoch = trainer.current_epoch
        row = {"step": self._steps, "epoch": epoch, **values}
        _append(self.session.folder / CURVES, row)
        for logger in trainer.loggers:
            # metrics.csv has one row per epoch.
            if not isinstance(logger, EpochCSVLogger):
                logger.log_metrics({**values, "epoch": epoch}, step=self._steps)

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Note that a checkpoint of the whole epoch follows.

        Args:
            trainer: that trains.
            pl_module: in training.

        Raises:
            UserError: if the run's folder was deleted.
        """
        # The checkpoint that follows would make the folder again, without the run's other files.
        if not (self.session.folder / "run.json").is_file():
            raise deleted(self.session.folder)
        self._epoch_ended = True

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        checkpoint: Checkpoint,
    ) -> None:
        """Add the row of metrics.csv: the file is written later, and a kill may come between.

        Args:
            trainer: that trains.
            pl_module: in training.
            checkpoint: the content; changed in place.
        """
        if not self._epoch_ended:
            return
        for logger in trainer.loggers:
            if isinstance(logger, EpochCSVLogger):
                checkpoint[EPOCH_ROW] = _epoch_row(trainer, logger)


def _epoch_row(trainer: pl.Trainer, logger: EpochCSVLogger) -> Row:
    """The whole row of the epoch that ends; Lightning logs the training metrics a moment later."""
    epoch = trainer.current_epoch
    row: Row = {"epoch": epoch, "step": trainer.global_step - 1}
    row.update(logger.rows.get(epoch, {}))
    for name, value in trainer.callback_metrics.items():
        # Those of the validation are in the row, unless they are of an earlier epoch.
        if not name.startswith(("val_", "test_")):
            row[name] = float(value)
    return row


def _append(path: Path, row: Mapping[str, float]) -> None:
    """Add a line to a CSV file; the first line also writes the header."""
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8") as file:
        if is_new:
            file.write(",".join(row) + "\n")
        file.write(",".join(map(repr, row.values())) + "\n")


def _cut_curves(path: Path, steps: int) -> None:
    """Remove the lines of steps that a resumed run repeats, and a line that a kill cut short."""
    if not path.is_file():
        return
    header, _, text = path.read_text(encoding="utf-8").partition("\n")
    lines = [header]
    # The part after the last newline is empty, or a line that is not whole.
    for line in text.split("\n")[:-1]:
        step = line.partition(",")[0]
        if step.isdigit() and int(step) <= steps:
            lines.append(line)
    write_whole_text(path, "\n".join(lines) + "\n")
