"""A LightningModule that costs less a step: where networks are small, what Lightning finds out at each step takes its time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from kd_lightning.types import Batch

Step = TypeVar("Step", bound=Callable[..., Any])


def known_signature(step: Step) -> Step:
    """Lightning asks for the parameters of `training_step` at each step; with this they are worked out once."""
    vars(step)["__signature__"] = inspect.signature(step)
    return step


class LeanModule(pl.LightningModule):
    """The hooks and their order are Lightning's."""

    _data_overrides: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook it is in some 40 times a step; nn.Module's own way to set a name takes microseconds each.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        datamodule = getattr(self.trainer, "datamodule", None)
        self._data_overrides = frozenset(hook for hook in hooks if is_overridden(hook, datamodule))

    def _call_batch_hook(self, hook_name: str, *args: Any) -> Any:
        # Whether a hook is the datamodule's or the module's, Lightning asks three times a step.
        if hook_name in self._data_overrides:
            return super()._call_batch_hook(hook_name, *args)
        return getattr(self, hook_name)(*args)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.to(device)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        # What `optimizer.zero_grad()` does, without a note to a profiler that takes longer than the rest.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
