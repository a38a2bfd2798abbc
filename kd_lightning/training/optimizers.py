"""Creates optimizer and scheduler from the factories of a config.

When a scheduler moves:

- per step, if it takes `total_steps` (OneCycleLR, WarmupCosineLR) and neither that nor `epochs` is
  given: the number of steps is filled in;
- per epoch, if it does not;
- after each validation, if it is `lightning.pytorch.cli.ReduceLROnPlateau`, whose argument
  `monitor` names a logged metric, such as `val_nll`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
from lightning.pytorch.utilities.types import (
    LRSchedulerConfigType,
    OptimizerLRScheduler,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kd_lightning.errors import UserError
from kd_lightning.training.parameter_groups import GroupOptions, check_groups

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with Nesterov momentum, in one fused kernel."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, fused=True)


def takes_total_steps(factory: SchedulerFactory) -> bool:
    """Whether a scheduler needs the number of steps, which only the trainer knows.

    Such a scheduler moves after every step, any other after every epoch.
    """
    if isinstance(factory, partial):
        if factory.keywords.get("total_steps") or factory.keywords.get("epochs"):
            return False
        # A config's factory is a partial of jsonargparse's own function, with the class among
        # its arguments.
        parts = [factory, factory.func, *factory.args]
    else:
        parts = [factory]
    for part in parts:
        if not isinstance(part, type):
            continue
        if "total_steps" in inspect.signature(part).parameters:
            return True
    return False


def plateau_monitor(factory: SchedulerFactory | None) -> str | None:
    """The metric that a ReduceLROnPlateau from a config monitors; `None` for other schedulers."""
    if not isinstance(factory, partial):
        return None
    monitor = factory.keywords.get("monitor")
    if not isinstance(monitor, str):
        return None
    return monitor


def optimize(
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None,
    parameters: list[nn.Parameter] | list[GroupOptions],
    total_steps: Callable[[], int],
) -> OptimizerLRScheduler:
    """An optimizer of the parameters, and its scheduler, in Lightning's form.

    Args:
        optimizer: from parameters to an optimizer.
        scheduler: from an optimizer to a scheduler.
        parameters: what to train: parameters, or groups of them as `parameter_groups` returns.
        total_steps: the number of optimizer steps; called only if the scheduler needs it.

    Raises:
        UserError: if one of them does not accept its arguments.
    """
    try:
        # Optimizers accept both forms, which the type of a config's factory does not say.
        made = optimizer(cast(Iterable[nn.Parameter], parameters))
        check_groups(made)
        if scheduler is None:
            return made
        schedule = _schedule(made, scheduler, total_steps)
        return {"optimizer": made, "lr_scheduler": schedule}
    except UserError:
        raise
    except ZeroDivisionError as error:
        raise UserError(
            "model.scheduler: the run has too few steps for its schedule; train longer, or set "
            "pct_start"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"model.optimizer or model.scheduler: {error}") from error


def _schedule(
    optimizer: Optimizer,
    scheduler: SchedulerFactory,
    total_steps: Callable[[], int],
) -> LRSchedulerConfigType:
    """The scheduler, and when it moves."""
    if takes_total_steps(scheduler):
        factory = cast(Callable[..., LRScheduler], scheduler)
        # Read before the scheduler exists, because OneCycleLR replaces them.
        rates = [group["lr"] for group in optimizer.param_groups]
        per_step = factory(optimizer, total_steps=total_steps())
        _check_rates(optimizer, rates)
        return {"scheduler": per_step, "interval": "step"}
    per_epoch = scheduler(optimizer)
    if isinstance(per_epoch, ReduceLROnPlateau):
        return _on_plateau(per_epoch)
    return {"scheduler": per_epoch, "interval": "epoch"}


def optimizer_of(configured: OptimizerLRScheduler) -> Optimizer:
    """The optimizer of what `optimize` returned."""
    if isinstance(configured, Optimizer):
        return configured
    assert isinstance(configured, dict)
    return configured["optimizer"]


def _on_plateau(scheduler: ReduceLROnPlateau) -> LRSchedulerConfigType:
    """The scheduler with the metric that it monitors.

    Raises:
        UserError: if no metric is named.
    """
    monitor = vars(scheduler).get("monitor")
    if not isinstance(monitor, str):
        raise UserError(
            "model.scheduler: ReduceLROnPlateau must know what to monitor; use "
            "lightning.pytorch.cli.ReduceLROnPlateau with monitor: val_nll, or another logged metric"
        )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}


def _check_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Refuse learning rates of groups that a scheduler with one `max_lr` for all overrides."""
    peaks = {group.get("max_lr") for group in optimizer.param_groups}
    one_peak = len(peaks) == 1 and None not in peaks
    if one_peak and len(set(rates)) > 1:
        raise UserError(
            "model.scheduler: max_lr replaces the lr of every parameter group; give max_lr as a "
            f"list of {len(rates)} rates, of the other parameters first, or remove lr from "
            "model.parameter_groups"
        )
