"""Curriculum temperature: Li et al. 2023."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.types import Batch, Output, full


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number: a gradient reversal, if negative."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        [scale] = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * scale, None


def reversal_at(epoch: int, length: int) -> float:
    """The number that multiplies the temperature's gradient: 0 falls to -1 along a cosine.

    Args:
        epoch: number of epochs begun, from 1.
        length: epochs until -1 is reached, at least 1.
    """
    progress = min(epoch, length) / length
    return (1 + math.cos(math.pi * progress)) / 2 - 1


class CTKD(DistillLoss):
    r"""KD at a temperature that is learned against the student: $T^2\,\mathrm{KL}$ at T(theta).

    $T = \mathrm{low} + \mathrm{span} \cdot \sigma(\theta)$ with one parameter $\theta$, from 1 on
    (T = 15.62 with the defaults). The student lowers the loss, $\theta$ raises it: its gradient,
    that of the factor $T^2$ included, is reversed. The reversal grows from 0 to its full size in
    `length` epochs, so that distillation starts easy. $\theta$ trains in the student's optimizer,
    whose weight decay applies to it too, and is stored in the checkpoint.

    The paper's weights are 0.9, and 0.1 for the hard loss. Its temperature per sample, from a small
    network, and its combinations with other losses are not included.

    Args:
        low: the least temperature, greater than 0.
        span: the largest temperature minus the least, at least 0.
        length: epochs, from `start`, until the reversal has its full size; at least 1.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a number out of range.
    """

    paper: ClassVar[str] = "Li et al. 2023, arXiv 2211.16231"
    year: ClassVar[int] = 2023
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    # A cache of the largest logits stores the rest for fixed temperatures only.
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True

    reversal: Tensor

    def __init__(
        self,
        low: float = 1.0,
        span: float = 20.0,
        length: int = 10,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.low = positive("CTKD", "low", low)
        self.span = not_negative("CTKD", "span", span)
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise UserError(
                f"CTKD: length must be a whole number of at least 1, got {length}"
            )
        self.length = length
        self.theta = nn.Parameter(torch.ones(()))
        self.register_buffer("reversal", torch.tensor(reversal_at(1, length)))

    def on_epoch_start(self, epoch: int) -> None:
        """Set how strongly the temperature's gradient is reversed in this epoch."""
        begun = max(1, epoch - self.start + 1)
        self.reversal.fill_(reversal_at(begun, self.length))

    @property
    def temperature(self) -> float:
        """The present temperature, for reports."""
        return self.learned_temperature().item()

    def learned_temperature(self) -> Tensor:
        """The present temperature, a scalar; its gradient reaches theta reversed."""
        # A copy, so that a new epoch may begin between the forward and the backward pass.
        scale = full(self.reversal).clone()
        theta = cast(Tensor, _ScaledGradient.apply(full(self.theta), scale))
        return self.low + self.span * theta.sigmoid()

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`soft_target_kl` at the learned temperature; a scalar in nats."""
        # A tensor without dimensions divides as a number does, and keeps its graph.
        temperature = cast(float, self.learned_temperature())
        log_p = teacher_of(self, teacher).log_probs(temperature)
        log_q = student.log_probs(temperature)
        return soft_target_kl(log_q, log_p, temperature)
