"""Adaptive KL divergence: Wu et al. 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    is_number,
    positive,
    teacher_of,
)
from kd_lightning.losses.reversekl import given_possible
from kd_lightning.types import Batch, Output, finite_log_probs


def head_share(student: Tensor, teacher: Tensor, mass: float) -> Tensor:
    r"""The share of the distance $\sum_k |p_k - q_k|$ that lies in the teacher's likely classes.

    The head of a row holds the teacher's most likely classes while their probabilities add up to at
    most `mass`, and always the first of them.

    Args:
        student: probabilities $q$, `(N, K)`.
        teacher: probabilities $p$, `(N, K)`.
        mass: in (0, 1].

    Returns:
        `(N,)` in [0, 1]; 1/2 where both distributions agree. Without a graph.
    """
    with torch.no_grad():
        sorted_probs, order = teacher.sort(dim=-1, descending=True, stable=True)
        is_head = sorted_probs.cumsum(-1) <= mass
        is_head[:, 0] = True
        gaps = (teacher - student).abs().gather(-1, order)
        head = (gaps * is_head).sum(-1)
        tail = (gaps * ~is_head).sum(-1)
        total = head + tail
        # 0 / 0 where both agree: any share gives the same value then.
        agrees = total == 0
        share = head / total.masked_fill(agrees, 1.0)
        return share.masked_fill(agrees, 0.5)


class AdaptiveKL(DistillLoss):
    r"""$T^2 \, [w \, \mathrm{KL}(p \,\|\, q) + (1 - w) \, \mathrm{KL}(q \,\|\, p)]$ with $w$ per row.

    KL learns likely classes first, and reverse KL unlikely ones. The weight $w$ is the share of
    the distance between both distributions that lies in the teacher's likely classes (the paper's
    equations 6 to 9), and has no gradient.

    The factor $T^2$ is ours, for comparison with KD; at the default T = 1 it has no effect. Every
    class counts, so a cache of the largest teacher logits cannot serve it.

    Args:
        mass: the probability of the teacher's likely classes, in (0, 1].
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature or mass out of range.
    """

    paper: ClassVar[str] = "Wu et al. 2024, arXiv 2404.02657"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(
        self, mass: float = 0.5, temperature: float = 1.0, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        if not is_number(mass) or not 0 < mass <= 1:
            raise UserError(f"AdaptiveKL: mass must be a number in (0, 1], got {mass}")
        self.mass = float(mass)
        self.temperature = positive("AdaptiveKL", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of both divergences at the temperature; a scalar in nats."""
        target = teacher_of(self, teacher).log_probs(self.temperature)
        prediction = student.log_probs(self.temperature)
        log_p = finite_log_probs(target)
        log_q = finite_log_probs(prediction)
        # As in ReverseKL, where the teacher rules out a class.
        log_possible = finite_log_probs(given_possible(prediction, target))
        forward_kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        reverse_kl = (log_possible.exp() * (log_possible - log_p)).sum(-1)
        share = head_share(log_q.exp(), log_p.exp(), self.mass)
        divergence = share * forward_kl + (1 - share) * reverse_kl
        return self.temperature**2 * divergence.mean()
