"""Multi-level logit distillation: Jin et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.losses.kd import soft_target_kl
from kd_lightning.types import Batch, Output

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\|P P^T - Q Q^T\|_F^2$ divided by the number of rows.

    Jin et al. 2023: of `(B, K)` probabilities the batch level, of their transposes the class level.

    Args:
        student: probabilities Q, `(D, E)`.
        teacher: probabilities P, `(D, E)`.

    Returns:
        A scalar; zero if both agree.
    """
    # `(D, D)` each.
    teacher_gram = teacher @ teacher.T
    student_gram = student @ student.T
    difference = teacher_gram - student_gram
    return difference.square().sum() / len(student)


class MLKD(DistillLoss):
    r"""Logits at three levels, summed over five temperatures and over the views of the batch.

    $\sum_T T^2\,\mathrm{KL}(P_T \| Q_T) + a \, \|P_T P_T^T - Q_T Q_T^T\|_F^2 / B +
    b \, \|P_T^T P_T - Q_T^T Q_T\|_F^2 / K$: each sample, pairs of samples, and pairs of classes, of
    probabilities `(B, K)` of the joint batch of all processes. If the batch holds several views of
    its samples, each view is a batch of its own, and the sum is over views too.

    This is the paper's form. The authors' code differs: it multiplies the whole loss by the share
    of confident samples, and adds the pairs of weakly augmented views only.

    The paper's weights are 0.9, and 0.1 for the hard loss of each view, of two: the usual
    augmentation, and RandAugment with Cutout on top. Here both views come from one augmentation.
    The hard loss is a mean over views, so that its weight is 0.1 times their number.

    The second and third level depend on the batch: the former grows with B and the latter with
    B^2, and the weights are for batches of 64.

    Args:
        temperatures: at least one, each greater than 0.
        between_samples: a, at least 0.
        between_classes: b, at least 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a number out of range.
    """

    paper: ClassVar[str] = "Jin et al. 2023, doi 10.1109/CVPR52729.2023.02325"
    year: ClassVar[int] = 2023
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        temperatures: Sequence[float] = TEMPERATURES,
        between_samples: float = 1.0,
        between_classes: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if not temperatures:
            raise UserError(
                f"MLKD: temperatures must list numbers greater than 0, got {temperatures!r}"
            )
        self.temperatures = [
            positive("MLKD", "each temperature", t) for t in temperatures
        ]
        self.between_samples = not_negative("MLKD", "between_samples", between_samples)
        self.between_classes = not_negative("MLKD", "between_classes", between_classes)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over temperatures and views over the joint batch, a scalar."""
        target = teacher_of(self, teacher)
        joined = JoinedBatch(batch, positions=True)
        views = _groups(batch, joined)
        logits = joined(student.tempered_logits())
        total = logits.new_zeros(())
        # Products of matrices need single precision, also under autocast.
        with torch.autocast(logits.device.type, enabled=False):
            for temperature in self.temperatures:
                log_p = joined(target.log_probs(temperature))
                log_q = torch.log_softmax(logits / temperature, dim=-1)
                for rows in views:
                    # Each view is a batch of its own: pairs never mix two augmentations.
                    view_q = log_q if rows is None else log_q[rows]
                    view_p = log_p if rows is None else log_p[rows]
                    total = total + self._levels(view_q, view_p, temperature)
        return total

    def _levels(self, log_q: Tensor, log_p: Tensor, temperature: float) -> Tensor:
        """The three levels of one view at one temperature, a scalar."""
        q = log_q.exp()
        p = log_p.exp()
        samples = gram_distance(q, p)
        classes = gram_distance(q.T, p.T)
        pairs = self.between_samples * samples + self.between_classes * classes
        return soft_target_kl(log_q, log_p, temperature) + pairs


def _groups(batch: Batch, joined: JoinedBatch) -> list[Tensor | None]:
    """The rows of each view in the joint batch, bool `(N,)` each; `[None]` if there is but one."""
    if isinstance(batch.view, int):
        return [None]
    if batch.num_rows != len(batch):
        raise UserError(
            "MLKD reads several views of samples with one label each, not of positions"
        )
    views = joined(batch.view)
    return [views == view for view in views.unique().tolist()]
