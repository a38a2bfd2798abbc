"""Squared error with the targets, the hard loss of regression."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    count_labelled,
    is_labelled,
)
from kd_lightning.types import Batch, Output, full


def target_mse(
    values: Tensor,
    target: Tensor,
    partner: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    r"""Mean over the known targets of $(z - y)^2$, in squared units of the target.

    A mixed row costs $\lambda (z - y)^2 + (1 - \lambda) (z - y')^2$. An unknown part contributes
    zero; the mean is over the rows with at least one known part.

    Args:
        values: $z$, `(N,)`.
        target: $y$, `(N,)`, NaN if unknown.
        partner: $y'$, `(N,)`, NaN if unknown; `None` if samples are not mixed.
        share: $\lambda$, `(N,)`, in [0, 1]; `None` if samples are not mixed.

    Returns:
        A scalar; zero, with a graph, if no target is known.
    """
    values = full(values)

    def cost(labels: Tensor) -> Tensor:
        # Replace NaN before the subtraction: NaN times zero is NaN, in the gradient as well.
        known = is_labelled(labels)
        targets = torch.where(known, labels, 0)
        differences = values - targets.to(values.dtype)
        return differences.square() * known

    costs = cost(target)
    if partner is not None and share is not None:
        costs = torch.lerp(cost(partner), costs, share.to(values.dtype))
    # Not `mean`: rows without a target are not part of it, and a batch may have none.
    labelled = count_labelled(target, partner)
    return costs.sum() / labelled.clamp(min=1)


class TargetMSE(DistillLoss):
    """Mean squared error with the targets; mixed samples (`Mixup`) count both by their shares.

    Every real value is a row of width 1, as the regression task arranges them. A target of NaN is
    unknown and contributes nothing.

    Args:
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: from `build`, if the rows are not of width 1.
    """

    paper: ClassVar[str] = "the hard loss of regression"
    family: ClassVar[str] = "hard"
    needs: ClassVar[tuple[str, ...]] = ("real-valued targets",)
    uses_teacher: ClassVar[bool] = False
    mean_over: MeanOver = "labelled"

    def __init__(self, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse data that are not real-valued, before training."""
        width = student.output.logits.shape[-1]
        if width != 1:
            raise UserError(
                f"TargetMSE needs rows of width 1, got {width}: the data {student.spec.data} is "
                f"for {student.spec.task}; use CrossEntropy for class labels"
            )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`target_mse` between the predicted values and the targets, a scalar in squared units."""
        values = student.logits.squeeze(-1)
        return target_mse(values, batch.labels, batch.partner_labels, batch.row_share)
