"""What a run writes: config.yaml, run.json and its run in W&B."""

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

from kd_lightning.files import write_whole_text
from kd_lightning.masking import masked_config
from kd_lightning.runs.build import BuiltRun
from kd_lightning.runs.fingerprint import data_fingerprint, shared_samples
from kd_lightning.runs.folder import RunFolder, RunRecord
from kd_lightning.runs.options import Setting
from kd_lightning.runs.resume import Resumed
from kd_lightning.runs.trainer_checks import callbacks_of
from kd_lightning.runs.wandb import LoggedRecord, run_identity, wandb_logger
from kd_lightning.values import Values
from kd_lightning.weights import sha256_of

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


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
        # The config first: a folder with a run.json can then be resumed.
        config = config_content(self.run, self.resumed is not None)
        self._write_config(config)
        self.record = RunRecord(self.folder, self._description(trainer))
        if self.run.trainer_settings.get("logger") is False:
            return
        record = cast(LoggedRecord, self.record.content)
        logger = wandb_logger(self.run.options, self.folder, config, record)
        self.logger = logger
        if logger is not None:
            trainer.loggers = [*trainer.loggers, logger]

    def _write_config(self, config: Values) -> None:
        """Write the config; that of a resumed run only if a setting changed."""
        path = self.folder / "config.yaml"
        if path.is_file() and self.resumed is not None and not self.resumed.changes:
            return
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_whole_text(path, text)

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
            earlier_changes = earlier.get("changes", [])
            description["changes"] = [*earlier_changes, *self._changes()]
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
        self,
        status: str,
        error: str | None,
        metrics: Mapping[str, float],
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
    handlers = {}
    for number in numbers:
        handlers[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def add_callback(trainer_settings: dict[str, Setting], callback: pl.Callback) -> None:
    """Put a callback before those of the user; checkpoints must come after it.

    Args:
        trainer_settings: arguments of the Trainer, changed in place.
        callback: the callback.
    """
    callbacks = callbacks_of(trainer_settings)
    trainer_settings["callbacks"] = [callback, *callbacks]
