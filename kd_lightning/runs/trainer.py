"""The Trainer of a run, with its callbacks and loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar, StochasticWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO

from kd_lightning.errors import UserError
from kd_lightning.runs.averaging import SaveAveraged
from kd_lightning.runs.build import BuiltRun
from kd_lightning.runs.checkpoints import RunCheckpoint, StopAtStep
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.predictions import SavePredictions
from kd_lightning.runs.profiler import NoProfiler
from kd_lightning.runs.progress import RunProgress
from kd_lightning.runs.trainer_checks import callbacks_of
from kd_lightning.training import lightning_compat
from kd_lightning.training.checkpoint_io import WholeCheckpointIO
from kd_lightning.training.first_report import FirstBatchReport
from kd_lightning.values import Value, Values, mapping_at

T = TypeVar("T")


def build_trainer(run: BuiltRun, folder: Path) -> Trainer:
    """Build the Trainer; the user's callbacks and loggers come first.

    Args:
        run: what the Trainer will execute.
        folder: of the run.
    """
    settings = dict(run.trainer_settings)
    users = _as_list(settings.get("callbacks"))
    settings["callbacks"] = [*users, *_callbacks(run, folder)]
    settings["logger"] = _loggers(run, folder)
    # Callbacks of Lightning write there, too.
    settings["default_root_dir"] = str(folder)
    settings["plugins"] = _plugins(run)
    settings["profiler"] = settings.get("profiler") or NoProfiler()
    trainer = Trainer(**settings)
    if run.command == "fit" and run.checkpoint is not None:
        _check_progress(trainer, run.checkpoint_content, run.checkpoint)
    return trainer


def _check_progress(trainer: Trainer, content: Values, path: Path) -> None:
    """Check the progress in a checkpoint before Lightning restores it.

    Args:
        trainer: that will resume.
        content: of the checkpoint.
        path: of the checkpoint, for messages.

    Raises:
        UserError: one line that names the first entry that is missing or of another form.
    """
    own = trainer.fit_loop.state_dict()
    loops = cast(Values, content["loops"])
    problem = _difference(loops.get("fit_loop"), own, "loops.fit_loop")
    states = mapping_at(content, "callbacks")
    for callback in lightning_compat.callbacks(trainer):
        # Only ours: users may add and remove callbacks of their own.
        if problem is not None or not isinstance(callback, RunCheckpoint):
            continue
        key = callback.state_key
        if key in states:
            problem = _missing(states[key], callback.state_dict(), f"callbacks.{key}")
    if problem is not None:
        raise UserError(
            f"--ckpt_path: {path} is damaged ({problem}); give another checkpoint of the run, or "
            "start a new run from its weights with --model.init_from"
        )


def _difference(stored: Value, own: Value, name: str) -> str | None:
    """The first part of a stored state that is missing or has another type than our own."""
    if not isinstance(own, Mapping):
        is_same_kind = isinstance(stored, type(own))
        if is_same_kind:
            return None
        return f"{name} is a {type(stored).__name__}"
    problem = _missing(stored, own, name)
    if problem is not None:
        return problem
    assert isinstance(stored, Mapping)
    for key, value in own.items():
        problem = _difference(stored[key], value, f"{name}.{key}")
        if problem is not None:
            return problem
    return None


def _missing(stored: Value, own: Values, name: str) -> str | None:
    """The first key of our own that a stored state lacks."""
    if not isinstance(stored, Mapping):
        return f"{name} is a {type(stored).__name__}"
    for key in own:
        if key not in stored:
            return f"{name}.{key} is missing"
    return None


def _as_list(value: T | list[T] | None) -> list[T]:
    """The Trainer accepts one object, a list of them, or none."""
    if not value:
        return []
    if isinstance(value, list):
        return value
    return [value]


def _plugins(run: BuiltRun) -> list[Any]:
    """The user's plugins, and ours that writes checkpoints, unless the user has one for that."""
    plugins = _as_list(run.trainer_settings.get("plugins"))
    if any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        return plugins
    return [*plugins, WholeCheckpointIO()]


def _callbacks(run: BuiltRun, folder: Path) -> list[Callback]:
    """Our callbacks; the Trainer itself moves those that write checkpoints to the end."""
    callbacks: list[Callback] = [SavePredictions(folder, run.datamodule.task)]
    shows_progress = run.trainer_settings.get("enable_progress_bar") is not False
    reports = run.options.report or run.options.strict
    if run.command == "fit" and run.checkpoint is None and reports:
        # Before the progress bar, which must not be interrupted by a table.
        callbacks.append(FirstBatchReport(run.options.strict, show=shows_progress))
    # The Trainer accepts one progress bar, and that of the user comes first.
    users_bar = any(
        isinstance(callback, ProgressBar)
        for callback in callbacks_of(run.trainer_settings)
    )
    if shows_progress and not users_bar:
        monitor = f"val_{run.datamodule.task.monitor}"
        callbacks.append(RunProgress(folder.name, monitor))
    writes_checkpoints = run.trainer_settings.get("enable_checkpointing") is not False
    if run.command == "fit" and writes_checkpoints:
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
        folder,
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks.extend([StopAtStep(folder / "last.ckpt"), last])
    for own in callbacks_of(run.trainer_settings):
        # It changes the weights after the last checkpoint was written.
        if isinstance(own, StochasticWeightAveraging):
            callbacks.append(SaveAveraged(folder / "last.ckpt"))
            break
    return callbacks


def _loggers(run: BuiltRun, folder: Path) -> list[Logger]:
    """The logger of metrics.csv, and the user's; none if the user wants none."""
    # The rows of the epochs that the checkpoint has seen stay.
    first_epoch = 0
    if run.command == "fit" and run.checkpoint_content:
        first_epoch = int(run.checkpoint_content["epoch"]) + 1
    extra = run.trainer_settings.get("logger")
    if extra is False:
        return []
    # True asks for Lightning's default logger, which ours replaces.
    own = [] if isinstance(extra, bool) else _as_list(extra)
    return [EpochCSVLogger(folder, first_epoch), *own]
