"""Schedules of the learning rate over the steps of a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kd_lightning.errors import UserError


class WarmupCosineLR(LambdaLR):
    """A linear warm-up, then half a cosine down to a final rate, step by step.

    The same as torch's SequentialLR of LinearLR and CosineAnnealingLR, but the number of steps comes
    from the run. The optimizer's own lr, of each parameter group, is the peak.

    Args:
        optimizer: its learning rates are the peaks.
        total_steps: steps of the whole run; filled in.
        warmup: share of the steps over which the rate rises.
        start_factor: the first rate, as a share of the peak.
        final_factor: the last rate, as a share of the peak.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.05,
        start_factor: float = 0.01,
        final_factor: float = 0.0,
    ) -> None:
        if total_steps is None or total_steps < 1:
            raise UserError("WarmupCosineLR: total_steps must be at least 1")
        for name, share in (("warmup", warmup), ("start_factor", start_factor)):
            if not 0 <= share <= 1:
                raise UserError(
                    f"WarmupCosineLR: {name} must be in [0, 1], got {share}"
                )
        if not 0 <= final_factor <= 1:
            raise UserError(
                f"WarmupCosineLR: final_factor must be in [0, 1], got {final_factor}"
            )
        # Before `super().__init__`, which computes the first rate.
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps)
        self.start_factor = start_factor
        self.final_factor = final_factor
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """The share of the peak at a step; the first step is 0."""
        if step < self.warmup_steps:
            rise = 1 - self.start_factor
            return self.start_factor + rise * step / self.warmup_steps
        # A warm-up of the whole run leaves no steps to divide by.
        remaining = max(1, self.total_steps - self.warmup_steps)
        progress = (step - self.warmup_steps) / remaining
        # The scheduler is asked for the rate after the last step, too.
        angle = math.pi * min(1.0, progress)
        cosine = (1 + math.cos(angle)) / 2
        return self.final_factor + (1 - self.final_factor) * cosine
