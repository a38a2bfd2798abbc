"""Refuses Trainer options that would do nothing, do something else, or fail during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)

from kd_lightning.errors import UserError
from kd_lightning.runs.options import RunOptions, TrainerSettings
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.optimizers import plateau_monitor, takes_total_steps

HALF_MIXED = ("16-mixed", "16", 16)


def check_trainer(
    settings: TrainerSettings,
    options: RunOptions,
    module: TrainingModule,
    has_validation: bool,
) -> None:
    """Check the Trainer's settings of `kd fit` before anything is trained.

    Args:
        settings: arguments of the Trainer.
        options: of the run.
        module: attached to its data.
        has_validation: whether the data has a validation split.

    Raises:
        UserError: in one line, with what to do.
    """
    # Lightning reports most of these mistakes after an epoch, and some never.
    callbacks = list(callbacks_of(settings))
    _check_tuners(callbacks)
    _check_precision(settings)
    _check_length(settings, module)
    if settings.get("default_root_dir") is not None:
        raise UserError(
            "--trainer.default_root_dir has no effect; use --run.root for the folder of all runs, "
            "or --run.dir for that of this run"
        )
    if settings.get("fast_dev_run") and options.test == "best":
        raise UserError(
            "--trainer.fast_dev_run writes no checkpoints; use --run.test=last, or leave it out"
        )
    follows_rates = any(isinstance(each, LearningRateMonitor) for each in callbacks)
    if follows_rates and settings.get("logger") is False:
        raise UserError(
            "LearningRateMonitor needs a logger; remove --trainer.logger=false or the callback"
        )
    # Callbacks of the user's own may log further metrics.
    if all(type(each).__module__.startswith("lightning.") for each in callbacks):
        _check_monitors(callbacks, module, has_validation)


def _check_monitors(
    callbacks: list[Callback],
    module: TrainingModule,
    has_validation: bool,
) -> None:
    """Refuse to monitor a metric that is never logged: Lightning would fail after an epoch."""
    names = logged_metrics(module, has_validation)
    for owner, monitor in _monitors(callbacks, module):
        if monitor not in names:
            raise UserError(
                f"{owner} monitors {monitor!r}, which is not logged; logged are "
                f"{', '.join(names)}"
            )


def callbacks_of(settings: TrainerSettings) -> Iterator[Callback]:
    """The callbacks of the Trainer's settings: one, a list, or none.

    Args:
        settings: arguments of the Trainer.
    """
    callbacks = cast("Callback | list[Callback] | None", settings.get("callbacks"))
    if isinstance(callbacks, list):
        yield from callbacks
    elif callbacks:
        yield callbacks


def logged_metrics(module: TrainingModule, has_validation: bool) -> list[str]:
    """The names of the metrics that training and validation log.

    Args:
        module: attached to its data.
        has_validation: whether the data has a validation split.
    """
    names = [*module.loss_names(), "learning_rate"]
    if has_validation and module.metrics is not None:
        names += module.metric_names("val")
    return names


def _monitors(
    callbacks: list[Callback], module: TrainingModule
) -> Iterator[tuple[str, str]]:
    """What callbacks and the scheduler monitor, with their names."""
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            yield "EarlyStopping", callback.monitor
        if not isinstance(callback, ModelCheckpoint):
            continue
        # Lightning offers "epoch" and "step" to every ModelCheckpoint.
        if callback.monitor not in (None, "epoch", "step"):
            yield "ModelCheckpoint", callback.monitor
    monitor = plateau_monitor(module.scheduler)
    if monitor is not None:
        yield "ReduceLROnPlateau", monitor


def _check_tuners(callbacks: list[Callback]) -> None:
    """Refuse callbacks that search for a setting which configs fix, or need another module."""
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                "LearningRateFinder cannot set the learning rate of an optimizer from a config; "
                "compare values of --model.optimizer.lr instead"
            )
        if isinstance(callback, BatchSizeFinder):
            raise UserError("BatchSizeFinder is not supported; set --data.batch_size")
        if isinstance(callback, BackboneFinetuning):
            raise UserError(
                "BackboneFinetuning needs a module with a backbone; give parts of the network "
                "rates of their own with --model.parameter_groups"
            )


def _check_precision(settings: TrainerSettings) -> None:
    """Refuse half precision with loss scaling on a CPU, where Lightning silently uses bfloat16."""
    accelerator = settings.get("accelerator") or "auto"
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_accelerator)
    if on_cpu and settings.get("precision") in HALF_MIXED:
        raise UserError(
            "--trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true"
        )


def _check_length(settings: TrainerSettings, module: TrainingModule) -> None:
    """Refuse limits that contradict each other, and a schedule over an unknown number of steps."""
    for unit in ("epochs", "steps"):
        least = settings.get(f"min_{unit}")
        most = settings.get(f"max_{unit}")
        if isinstance(least, int) and isinstance(most, int) and 0 <= most < least:
            raise UserError(
                f"--trainer.min_{unit}={least} has no effect beyond --trainer.max_{unit}={most}; "
                "raise the latter"
            )
    # Lightning trains 1,000 epochs if nothing at all is given, which is an end as well.
    max_epochs = settings.get("max_epochs")
    open_end = max_epochs == -1 or (
        max_epochs is None and settings.get("max_time") is not None
    )
    if not open_end or settings.get("max_steps", -1) not in (-1, None):
        return
    if module.scheduler is not None and takes_total_steps(module.scheduler):
        raise UserError(
            "model.scheduler plans the learning rate of every step, so the number of steps must be "
            "known; set --trainer.max_epochs or --trainer.max_steps (beside max_time), or use "
            "another scheduler"
        )
