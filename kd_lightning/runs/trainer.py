"""The Trainer of a run, with its callbacks and loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import Logger

from kd_lightning.runs.averaging import SaveAveraged
from kd_lightning.runs.build import BuiltRun
from kd_lightning.runs.checkpoints import RunCheckpoint, StopAtStep
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.predictions import SavePredictions
from kd_lightning.runs.profiler import NoProfiler
from kd_lightning.runs.progress import RunProgress
from kd_lightning.runs.trainer_checks import callbacks_of


def build_trainer(run: BuiltRun, folder: Path) -> Trainer:
    """Build the Trainer; the user's callbacks and loggers come first.

    Args:
        run: what the Trainer will execute.
        folder: of the run.
    """
    settings = dict(run.trainer_settings)
    settings["callbacks"] = [*_as_list(settings.get("callbacks")), *_callbacks(run, folder)]
    settings["logger"] = _loggers(run, folder)
    settings["default_root_dir"] = str(folder)
    settings["profiler"] = settings.get("profiler") or NoProfiler()
    return Trainer(**settings)


def _as_list(value: Any) -> list[Any]:
    """The Trainer accepts one object, a list of them, or none."""
    if not value:
        return []
    return value if isinstance(value, list) else [value]


def _callbacks(run: BuiltRun, folder: Path) -> list[Callback]:
    callbacks: list[Callback] = [SavePredictions(folder, run.datamodule.task)]
    if run.trainer_settings.get("enable_progress_bar") is not False:
        callbacks.append(RunProgress(folder.name, f"val_{run.datamodule.task.monitor}"))
    if run.command == "fit" and run.trainer_settings.get("enable_checkpointing") is not False:
        callbacks.extend(_checkpoints(run, folder / "checkpoints"))
    return callbacks


def _checkpoints(run: BuiltRun, folder: Path) -> list[Callback]:
    """`best.ckpt` after the best epoch, `last.ckpt` after every epoch and after a signal."""
    callbacks: list[Callback] = []
    task = run.datamodule.task
    if run.has_validation:
        best = RunCheckpoint(
            folder,
            filename="best",
            monitor=f"val_{task.monitor}",
            mode=task.mode,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks.append(best)
    last = RunCheckpoint(
        folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks.extend([StopAtStep(folder / "last.ckpt"), last])
    if any(
        isinstance(own, StochasticWeightAveraging) for own in callbacks_of(run.trainer_settings)
    ):
        callbacks.append(SaveAveraged(folder / "last.ckpt"))
    return callbacks


def _loggers(run: BuiltRun, folder: Path) -> list[Logger]:
    first_epoch = 0
    if run.command == "fit" and run.checkpoint_content:
        first_epoch = int(run.checkpoint_content["epoch"]) + 1
    extra = run.trainer_settings.get("logger")
    if extra is False:
        return []
    # True asks for Lightning's default logger, which ours replaces.
    own = [] if isinstance(extra, bool) else _as_list(extra)
    return [EpochCSVLogger(folder, first_epoch), *own]
