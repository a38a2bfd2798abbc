"""Creates optimizer and scheduler from the factories of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.errors import UserError

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
        parts = [factory, factory.func, *factory.args]
    else:
        parts = [factory]
    for part in parts:
        if isinstance(part, type) and "total_steps" in inspect.signature(part).parameters:
            return True
    return False


def optimize(
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None,
    parameters: list[nn.Parameter],
    total_steps: Callable[[], int],
) -> OptimizerLRScheduler:
    """An optimizer of the parameters, and its scheduler, in Lightning's form.

    Args:
        optimizer: from parameters to an optimizer.
        scheduler: from an optimizer to a scheduler.
        parameters: what to train.
        total_steps: the number of optimizer steps; called only if the scheduler needs it.

    Raises:
        UserError: if one of them does not accept its arguments.
    """
    try:
        made = optimizer(parameters)
        if scheduler is None:
            return made
        if takes_total_steps(scheduler):
            factory = cast(Callable[..., LRScheduler], scheduler)
            per_step = factory(made, total_steps=total_steps())
            return {"optimizer": made, "lr_scheduler": {"scheduler": per_step, "interval": "step"}}
        per_epoch = scheduler(made)
        return {"optimizer": made, "lr_scheduler": {"scheduler": per_epoch, "interval": "epoch"}}
    except ZeroDivisionError as error:
        raise UserError(
            "model.scheduler: the run has too few steps for its schedule; train longer, or set "
            "pct_start"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"model.optimizer or model.scheduler: {error}") from error
