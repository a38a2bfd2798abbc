"""What a run writes while it trains: config.yaml, run.json, curves within an epoch, and W&B."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import yaml
from torch import Tensor

from kd_lightning.escaping import masked_config
from kd_lightning.files import write_whole_text
from kd_lightning.runs.build import BuiltRun
from kd_lightning.runs.csv_logger import EpochCSVLogger, Row
from kd_lightning.runs.fingerprint import data_fingerprint, shared_samples
from kd_lightning.runs.folder import RunFolder, RunRecord
from kd_lightning.runs.problems import deleted
from kd_lightning.runs.resume import Resumed
from kd_lightning.runs.wandb import run_identity, wandb_logger
from kd_lightning.training import lightning_compat
from kd_lightning.weights import sha256_of

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

EPOCH_ROW = "kd_epoch_row"
"""The checkpoint's entry for the row of metrics.csv of the epoch that it ends."""

CURVES = "steps.csv"
"""The file of losses within an epoch: one line per `log_every_n_steps` steps."""


class Session:
    """Writes the files of a run, in the main process.

    A resumed run changes nothing before its first step, so that a refusal leaves its files alone.

    Args:
        run: what is executed.
        folder: of the run.
        resumed: the run as it was, if it is resumed.
    """

    def __init__(self, run: BuiltRun, folder: Path, resumed: Resumed | None) -> None:
        self.run = run
        self.folder = folder
        self.resumed = resumed
        self.record: RunRecord | None = None
        self.logger: WandbLogger | None = None

    def start(self, trainer: pl.Trainer) -> None:
        """Write config.yaml and run.json, and start the run in W&B; a second call does nothing.

        Raises:
            UserError: if W&B cannot be reached.
        """
        if self.record is not None:
            return
        config = config_content(self.run, self.resumed is not None)
        self._write_config(config)
        self.record = RunRecord(self.folder, self._description(trainer))
        if self.run.trainer_settings.get("logger") is False:
            return
        logger = wandb_logger(
            self.run.options, self.folder, config, self.record.content
        )
        self.logger = logger
        if logger is not None:
            trainer.loggers = [*trainer.loggers, logger]

    def _write_config(self, config: Mapping[str, Any]) -> None:
        """Write the config; that of a resumed run only if a setting changed."""
        path = self.folder / "config.yaml"
        if path.is_file() and self.resumed is not None and not self.resumed.changes:
            return
        write_whole_text(
            path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        )

    def _description(self, trainer: pl.Trainer) -> dict[str, Any]:
        """The entries of run.json that say what runs."""
        run = self.run
        is_resumed = run.checkpoint is not None and run.command == "fit"
        description: dict[str, Any] = {
            "name": self.folder.name,
            "job_type": run.job_type,
            "seed": run.seed,
            "data": run.datamodule.spec.to_dict(),
            "task": run.datamodule.task.describe(),
            "teacher": run.module.provenance(),
            "resumed_from": str(run.checkpoint) if is_resumed else None,
            "processes": trainer.world_size,
        }
        earlier = RunFolder(self.folder).record
        description["wandb"] = run_identity(earlier, run.options)
        if run.command == "fit":
            description["data_sha256"] = data_fingerprint(run.datamodule)
            description["shared_test_samples"] = self._shared_samples()
        if self.resumed is not None:
            description["changes"] = [*earlier.get("changes", []), *self._changes()]
        return description

    def _changes(self) -> list[dict[str, Any]]:
        """The settings that change with this command."""
        assert self.resumed is not None
        changes = []
        for change in self.resumed.changes:
            changes.append({**change._asdict(), "epoch": self.resumed.epoch})
        return changes

    def _shared_samples(self) -> int | None:
        """Count test samples that are trained on, and report them."""
        count = shared_samples(self.run.datamodule)
        if count:
            samples = self.run.datamodule.spec.samples.get("test", 0)
            print(
                f"data: {count:,} of {samples:,} test samples also lie in the training data; "
                "test metrics count them"
            )
        return count

    def finish(
        self, status: str, error: str | None, metrics: Mapping[str, float]
    ) -> None:
        """Record how the run ended; a resumed run that never started stays as it was.

        Raises:
            OSError: if a finished run cannot be recorded.
        """
        if self.record is None:
            return
        # A finished run that is resumed measures nothing new.
        all_metrics = {**self.record.content["metrics"], **metrics}
        entries: dict[str, Any] = {
            "status": status,
            "error": error,
            "metrics": all_metrics,
            "teacher": self.run.module.provenance(),
        }
        with no_signals():
            if status == "finished":
                last = RunFolder(self.folder).checkpoint
                if last.is_file():
                    entries["checkpoint_sha256"] = sha256_of(last)
                self.record.write(**entries)
            else:
                self.record.write_anyway(**entries)

    def close(self, status: str) -> None:
        """End the run in W&B, which may still send what it has; a signal ends the wait."""
        if self.logger is None:
            return
        # Everything is in the run's folder, so that no error here costs a result.
        with contextlib.suppress(KeyboardInterrupt, Exception):
            self.logger.experiment.finish(exit_code=int(status != "finished"))


def config_content(run: BuiltRun, resumed: bool) -> dict[str, Any]:
    """The content of config.yaml.

    With nulls: an argument whose default is not null may have been set to null. Without secrets: a
    run folder is shared, and so is the copy of the config in W&B.

    Args:
        run: whose config it is.
        resumed: whether the run continues in its own folder.
    """
    content = {**run.settings, "run": {**run.settings["run"]}}
    # A second run of this config needs a folder of its own.
    content["run"]["dir"] = None
    if resumed or content.get("ckpt_path") is None:
        # A null here would override a --ckpt_path that stands before this file on a command line.
        content.pop("ckpt_path", None)
    return cast(dict[str, Any], masked_config(content))


@contextmanager
def no_signals() -> Iterator[None]:
    """Let no Ctrl-C and no SIGTERM interrupt a short write."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def add_callback(trainer_settings: dict[str, Any], callback: pl.Callback) -> None:
    """Put a callback before those of the user; checkpoints must come after it.

    Args:
        trainer_settings: arguments of the Trainer, changed in place.
        callback: the callback.
    """
    own = trainer_settings.get("callbacks") or []
    trainer_settings["callbacks"] = [
        callback,
        *(own if isinstance(own, list) else [own]),
    ]


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
        self.session.start(trainer)
        self._every = lightning_compat.log_every_n_steps(trainer)
        self._steps = trainer.global_step
        _cut_curves(self.session.folder / CURVES, self._steps)

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self._epoch_ended = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
    ) -> None:
        self._steps += 1
        if not self._every or self._steps % self._every:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        values = {
            "train_loss_step": float(loss),
            "learning_rate_step": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        epoch = trainer.current_epoch
        _append(
            self.session.folder / CURVES,
            {"step": self._steps, "epoch": epoch, **values},
        )
        for logger in trainer.loggers:
            # metrics.csv has one row per epoch.
            if not isinstance(logger, EpochCSVLogger):
                logger.log_metrics({**values, "epoch": epoch}, step=self._steps)

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        # The checkpoint that follows would make the folder again, without the run's other files.
        if not (self.session.folder / "run.json").is_file():
            raise deleted(self.session.folder)
        self._epoch_ended = True

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
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
    kept = [header]
    for line in text.split("\n")[:-1]:
        step = line.partition(",")[0]
        if step.isdigit() and int(step) <= steps:
            kept.append(line)
    write_whole_text(path, "\n".join(kept) + "\n")
