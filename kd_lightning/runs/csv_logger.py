"""Writes metrics.csv with one row per epoch."""

from __future__ import annotations

import csv
import io
import time
from argparse import Namespace
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from kd_lightning.files import write_whole_text
from kd_lightning.training.first_report import PREFIX as REPORT_PREFIX
from kd_lightning.values import Value

Row = dict[str, float | int | str | None]

WRITE_EVERY_S = 1.0
"""Least time between two writes of the file, in seconds."""


class EpochCSVLogger(Logger):
    """Writes metrics.csv with all metrics of an epoch in one row.

    Lightning's CSVLogger writes one row per call and deletes the file of a resumed run.

    Args:
        folder: the run's folder.
        first_epoch: the first epoch of this process. Earlier rows of an existing file are kept;
            later rows are discarded, because the resumed run repeats those epochs.
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, Row] = {}
        self._written_at = 0.0
        if first_epoch and self.path.is_file():
            self._read(first_epoch)

    def _read(self, first_epoch: int) -> None:
        """Read the rows of earlier epochs."""
        with self.path.open(newline="") as file:
            for cells in csv.DictReader(file):
                epoch = int(float(cells["epoch"]))
                if epoch >= first_epoch:
                    continue
                # An empty cell is a metric that this epoch does not have.
                row: Row = {}
                for name, cell in cells.items():
                    if cell:
                        row[name] = cell
                self.rows[epoch] = row

    def complete(self, row: Row) -> None:
        """Add the cells that the file lacks of the epoch that a checkpoint ended.

        The file is written after the checkpoint, so a kill between both leaves it behind.

        Args:
            row: of that epoch, from the checkpoint.
        """
        # What the file holds already was written later than the checkpoint, and stays.
        epoch = int(row["epoch"] or 0)
        own = self.rows.setdefault(epoch, {})
        for name, value in row.items():
            own.setdefault(name, value)

    @property
    def name(self) -> str:
        """Empty: the file lies in the run's folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the file lies in the run's folder itself."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> EpochCSVLogger:
        """The logger itself."""
        return self

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Value] | Namespace, *args: Value, **kwargs: Value
    ) -> None:
        """Do nothing: the config is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their epoch.

        Args:
            metrics: by name; `epoch` among them.
            step: of the training.
        """
        if all(name.startswith(REPORT_PREFIX) for name in metrics):
            # The first-batch report belongs to no epoch; run.json holds it.
            return
        epoch = int(metrics.get("epoch", 0))
        others = set(metrics) - {"epoch"}
        is_test = all(name.startswith("test_") for name in others)
        if self.rows and is_test:
            # A test after training belongs to the last epoch.
            epoch = max(self.rows)
        row = self.rows.setdefault(epoch, {"epoch": epoch, "step": step})
        for name, value in metrics.items():
            if name != "epoch":
                row[name] = value
        if time.monotonic() - self._written_at > WRITE_EVERY_S:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file atomically."""
        # Lightning calls this several times per epoch. Waiting for the disk each time would slow
        # down short epochs.
        self._write(durable=False)

    def _write(self, durable: bool) -> None:
        if not self.rows:
            return
        # A dict keeps the order in which metrics first appeared.
        names: dict[str, None] = {}
        for row in self.rows.values():
            names.update(dict.fromkeys(row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        for epoch in sorted(self.rows):
            writer.writerow(self.rows[epoch])
        write_whole_text(self.path, text.getvalue(), durable)
        self._written_at = time.monotonic()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Write the file, so that a run resumed from the checkpoint finds all earlier rows."""
        self._write(durable=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file at the end of a run."""
        self._write(durable=True)
