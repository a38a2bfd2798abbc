"""Temporally adaptive interpolated distillation: Shing et al. 2025."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    is_number,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.types import Batch, Output

_EPSILON = 1e-15
"""Keeps the relative change of a loss of 0 finite; the public code's value."""


class TAID(DistillLoss):
    r"""KL from a target that moves from the student's own distribution to the teacher's.

    $T^2\,\mathrm{KL}(p_t \,\|\, q)$ with $p_t = \mathrm{softmax}([(1 - t)\, z + t\, v] / T)$ of the
    student's logits $z$, which have no gradient there, and the teacher's logits $v$ (Shing et al.
    2025, equation 3). The position $t$ starts at `start_at` and moves after every step by

    $$\delta = \alpha \, \sigma(m) \, (1 - t), \qquad
      m \leftarrow \beta m + (1 - \beta) \frac{l_{n-1} - l_n}{l_{n-1} + \epsilon},$$

    faster while the loss $l$ falls, and never behind the line from `start_at` at the first step to
    1 after `steps` steps (the paper's algorithm 1). From then on the loss is that of `KD`.

    The position, the momentum $m$ and the last loss are in the checkpoint. Several processes agree
    on the mean of their losses. The public code leaves out the target's entropy, which changes the
    value and, by it, the pace. The factor $T^2$ is ours; at the default T = 1 it has no effect.

    Args:
        steps: optimizer steps until the target is the teacher; at least 1.
        start_at: the position at the first step, in [0, 1]. The paper: 0.4, or 0.2 for students
            much smaller than their teacher.
        alpha: largest speed of the position, at least 0.
        beta: momentum, in [0, 1).
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a number out of range.
    """

    paper: ClassVar[str] = "Shing et al. 2025, arXiv 2501.16937"
    year: ClassVar[int] = 2025
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    # Logits are interpolated, and those of the classes beyond a top-k cache are unknown.
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True

    position: Tensor
    momentum: Tensor
    last_loss: Tensor
    done: Tensor

    def __init__(
        self,
        steps: int = 1000,
        start_at: float = 0.4,
        alpha: float = 5e-4,
        beta: float = 0.99,
        temperature: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UserError(
                f"TAID: steps must be a whole number of at least 1, got {steps}"
            )
        if not is_number(start_at) or not 0 <= start_at <= 1:
            raise UserError(
                f"TAID: start_at must be a number in [0, 1], got {start_at}"
            )
        if not is_number(beta) or not 0 <= beta < 1:
            raise UserError(f"TAID: beta must be a number in [0, 1), got {beta}")
        self.steps = steps
        self.start_at = float(start_at)
        self.alpha = not_negative("TAID", "alpha", alpha)
        self.beta = float(beta)
        self.temperature = positive("TAID", "temperature", temperature)
        self.register_buffer("position", torch.tensor(self.start_at))
        self.register_buffer("momentum", torch.zeros(()))
        self.register_buffer("last_loss", torch.zeros(()))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self._loss_of_step: Tensor | None = None

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`soft_target_kl` from the interpolated target; a scalar in nats."""
        own = student.tempered_logits(self.temperature)
        target = teacher_of(self, teacher).tempered_logits(self.temperature)
        position = self.position.to(own.dtype)
        mixed = torch.lerp(own.detach(), target, position)
        # A class that the teacher rules out stays ruled out, and 0 * inf is no number.
        mixed = torch.where(target == -torch.inf, target, mixed)
        log_p = torch.log_softmax(mixed, dim=-1)
        log_q = torch.log_softmax(own, dim=-1)
        value = soft_target_kl(log_q, log_p, self.temperature)
        if self.training:
            self._loss_of_step = value.detach()
        return value

    def after_step(self) -> None:
        """Move the target on by what the last loss tells."""
        if self._loss_of_step is None:
            return
        loss = self._loss_of_step.to(self.last_loss.dtype)
        self._loss_of_step = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss = loss / torch.distributed.get_world_size()
        # All of it on the device: a step must not wait for a number.
        change = (self.last_loss - loss) / (self.last_loss + _EPSILON)
        # The first step has no loss before it to compare with.
        change = torch.where(self.done > 0, change, torch.zeros_like(change))
        self.momentum.mul_(self.beta).add_((1 - self.beta) * change)
        speed = self.alpha * self.momentum.sigmoid() * (1 - self.position)
        self.done.add_(1)
        line = self.start_at + (1 - self.start_at) * self.done / self.steps
        moved = torch.maximum(self.position + speed, line)
        self.position.copy_(moved.clamp(max=1.0))
        self.last_loss.copy_(loss)
