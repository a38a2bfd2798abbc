"""Normalized knowledge distillation: Yang et al. 2023."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses._labels import (
    mean_over_labels,
    split_target,
    weighted_target_cost,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


class NKD(DistillLoss):
    r"""$-p_t \ln q_t - \gamma \, T^2 \sum_{k \ne t} \hat p_k \ln \hat q_k$.

    The first term weights the hard loss by the teacher's probability of the label, at temperature
    1. The second is the cross-entropy over the other classes at temperature T, where $\hat p$ and
    $\hat q$ are normalized to sum to one without the label. Both are cross-entropies: at the
    teacher the loss is not 0, and the first term always asks for more of the label.

    The hard loss stays at weight 1. The authors use $\gamma = 1.5$, T = 1 on ImageNet, and
    $\gamma = 3.5$, T = 3 for resnet34-resnet18 on CIFAR-100. The mean is over labelled rows; mixed
    samples count both labels by their shares.

    Args:
        gamma: weight of the other classes, at least 0.
        temperature: T of the other classes, greater than 0; the paper's lambda.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature or gamma out of range.
    """

    paper: ClassVar[str] = "Yang et al. 2023, arXiv 2303.13005"
    year: ClassVar[int] = 2023
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")
    exact_logits: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(
        self, gamma: float = 1.5, temperature: float = 1.0, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        self.gamma = not_negative("NKD", "gamma", gamma)
        self.temperature = positive("NKD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The target's term and that of the others, mean over labelled rows; a scalar in nats."""
        target = teacher_of(self, teacher)
        # Converted once: two gradients of half-precision logits would be rounded before their sum.
        student = Output(full(student.logits))
        p = target.log_probs()
        q = student.log_probs()
        tempered_p = target.log_probs(self.temperature)
        tempered_q = student.log_probs(self.temperature)

        def cost(labels: Tensor) -> Tensor:
            own = weighted_target_cost(q, p, labels)
            _, rest_p = split_target(tempered_p, labels)
            _, rest_q = split_target(tempered_q, labels)
            # Cross-entropy over the other classes, normalized among themselves: `(N,)`.
            others = -(rest_p.exp() * rest_q).sum(-1)
            return own + self.gamma * self.temperature**2 * others

        return mean_over_labels(cost, batch)
