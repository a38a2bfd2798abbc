"""Distillation of the teacher's decision: Touvron et al. 2021."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, teacher_of
from kd_lightning.losses.ce import hard_cross_entropy, head_logits
from kd_lightning.types import Batch, Output


class HardDistillation(DistillLoss):
    r"""Cross-entropy with the teacher's likeliest class: $-\ln q_{\arg\max_k v_k}$.

    The hard-label distillation of DeiT, there at half of the total:
    `0.5 * CE + 0.5 * HardDistillation`. The teacher sees the same mixed or augmented sample. All
    rows count, labelled or not. There is no temperature; a cache of the largest teacher logit is
    enough.

    The paper gives each term a token and a head of its own, and averages the predictions of both.
    For such a network, name the distillation head with `head`, and the other with that of
    `CrossEntropy`; the network itself returns the average. Without it both terms read the same
    logits.

    Args:
        head: the role of a layer whose output is taken for the logits, such as the distillation
            head.
        base: weight, start, end, warmup; see `DistillLoss`.
    """

    paper: ClassVar[str] = "Touvron et al. 2021, arXiv 2012.12877"
    year: ClassVar[int] = 2021
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("the teacher's likeliest class",)

    def __init__(self, head: str | None = None, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.head = head

    @property
    def student_roles(self) -> set[str]:
        """The distillation head, if it is not the student's only one."""
        if self.head is None:
            return set()
        return {self.head}

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """One; the likeliest class is the same at every temperature."""
        return (1.0,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Cross-entropy with the teacher's decision, mean over all rows; a scalar in nats."""
        target = teacher_of(self, teacher)
        # One class per row, `(N,)`: it takes the place of the label.
        decision = target.logits.argmax(-1)
        logits = head_logits("HardDistillation", student, self.head)
        return hard_cross_entropy(logits, decision)
