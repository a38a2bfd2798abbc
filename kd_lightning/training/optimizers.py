"""From factories of optimizer and scheduler, as the config gives them, to what the Trainer is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.errors import UserError

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, fused=True)


def takes_total_steps(factory: Any) -> bool:
    """Whether a scheduler is to be told the number of steps, which only the trainer knows; it then moves every step."""
    parts = [factory, factory.func, *factory.args] if isinstance(factory, partial) else [factory]
    told = isinstance(factory, partial) and (
        factory.keywords.get("total_steps") or factory.keywords.get("epochs")
    )
    classes = [part for part in parts if isinstance(part, type)]
    return not told and any("total_steps" in inspect.signature(c).parameters for c in classes)


def optimize(
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None,
    parameters: list[nn.Parameter],
    total_steps: Callable[[], int],
) -> OptimizerLRScheduler:
    """An optimizer of the parameters, and its scheduler.

    Raises:
        UserError: where one of them refuses its arguments.
    """
    try:
        made = optimizer(parameters)
        if scheduler is None:
            return made
        if takes_total_steps(scheduler):
            moves = cast(Callable[..., LRScheduler], scheduler)(made, total_steps=total_steps())
            return {"optimizer": made, "lr_scheduler": {"scheduler": moves, "interval": "step"}}
        return {
            "optimizer": made,
            "lr_scheduler": {"scheduler": scheduler(made), "interval": "epoch"},
        }
    except ZeroDivisionError as error:
        raise UserError(
            "model.scheduler: the run has too few steps for its schedule; train longer, or set pct_start"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"model.optimizer or model.scheduler: {error}") from error
