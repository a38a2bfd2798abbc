"""Hooks that do what Lightning's own do, in less time per step."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.training import lightning_compat
from kd_lightning.training.split_gradients import SplitOptimizer, clip_separately
from kd_lightning.types import Batch

BatchHookArgument = Batch | int
"""What Lightning passes to a hook on batches: the batch, and the index of its loader."""


class QuickHooks(pl.LightningModule):
    """Replaces hooks whose overhead exceeds the step of a small network.

    `tests/training/test_lightning_compat.py` compares the trained weights with those that
    Lightning's own hooks lead to.
    """

    _datamodule_hooks: frozenset[str] = frozenset()

    def setup(self, stage: str) -> None:
        """Note once which hooks the datamodule overrides; Lightning looks in every step.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        datamodule = lightning_compat.datamodule_of(self.trainer)
        self._datamodule_hooks = lightning_compat.overridden_batch_hooks(datamodule)
        super().setup(stage)

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        if name == lightning_compat.CURRENT_HOOK:
            # nn.Module would first look for a parameter, a buffer and a module of that name.
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _call_batch_hook(self, hook_name: str, *args: BatchHookArgument) -> Batch:
        if hook_name in self._datamodule_hooks:
            return cast(Batch, super()._call_batch_hook(hook_name, *args))
        hook = getattr(self, hook_name)
        return cast(Batch, hook(*args))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients if the Trainer was told to.

        Args:
            optimizer: of the step.
            gradient_clip_val: the largest norm or value; nothing is clipped if it is 0 or `None`.
            gradient_clip_algorithm: "norm" or "value".
        """
        # Lightning calls the precision plugin even if nothing is clipped.
        if gradient_clip_val and isinstance(optimizer, SplitOptimizer):
            clip_separately(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_zero_grad(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
    ) -> None:
        """Drop the gradients of the last step.

        Args:
            epoch: of the training, from 0.
            batch_idx: of the batch in its epoch.
            optimizer: of the step.
        """
        # Equal to optimizer.zero_grad() without its profiler entry, which takes longer than this.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
