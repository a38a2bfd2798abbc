"""metrics.csv: one row an epoch."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class EpochCSVLogger(Logger):
    """Writes metrics.csv with all of an epoch's metrics in one row.

    Lightning's own writes a row for each call and deletes the file of a resumed run.

    Args:
        folder: the run's folder.
        first_epoch: of this process; earlier rows of an existing file are kept, later ones are of work that was lost.
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        self._written = 0.0
        if first_epoch and self.path.is_file():
            with self.path.open(newline="") as file:
                rows = {
                    int(float(row["epoch"])): {k: v for k, v in row.items() if v}
                    for row in csv.DictReader(file)
                }
            self.rows = {epoch: row for epoch, row in rows.items() if epoch < first_epoch}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> EpochCSVLogger:
        return self

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The config is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        epoch = int(metrics.get("epoch", 0))
        if self.rows and all(name.startswith("test_") or name == "epoch" for name in metrics):
            epoch = max(self.rows)  # a test after training is no epoch of its own
        row = self.rows.setdefault(epoch, {"epoch": epoch, "step": step})
        row |= {name: value for name, value in metrics.items() if name != "epoch"}
        if time.monotonic() - self._written > 1:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        names = {name: None for row in self.rows.values() for name in row}
        temporary = self.path.with_name(".metrics.csv")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))
        temporary.replace(self.path)
        self._written = time.monotonic()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Nothing that a checkpoint builds on is lost."""
        self.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
