"""Correlations within samples and within classes: Huang et al. 2022."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output

EPSILON = 1e-8
"""The least product of two norms. The authors add the same number to the product instead, which
moves the minimum away from 0."""


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""One minus Pearson's correlation along the last dimension, mean over the others.

    Huang et al. 2022, equations 5 and 6. A constant vector has no correlation with any other: its
    distance is 1.

    Args:
        student: `(N, ..., D)`.
        teacher: the same shape.

    Returns:
        A scalar in [0, 2]; zero if each of the student's vectors is a positive affine map of the
        teacher's.
    """
    # Equation 5: the cosine of centered vectors.
    a = student - student.mean(-1, keepdim=True)
    b = teacher - teacher.mean(-1, keepdim=True)
    # The root of each sum by itself: their product underflows later than the product of squares.
    student_norm: Tensor = torch.linalg.vector_norm(a, dim=-1)
    teacher_norm: Tensor = torch.linalg.vector_norm(b, dim=-1)
    norms = student_norm * teacher_norm
    correlation = (a * b).sum(-1) / norms.clamp(min=EPSILON)
    # Equation 6.
    return (1 - correlation).mean()


class DIST(DistillLoss):
    r"""$T^2 (\beta \, (1 - \bar r_{rows}) + \gamma \, (1 - \bar r_{columns}))$ of probabilities.

    $\bar r_{rows}$ is the mean over samples of the correlation between the teacher's and the
    student's probabilities of all classes. $\bar r_{columns}$ is the mean over classes of the
    correlation between their probabilities of that class for all samples of the joint batch of all
    processes. The student is free in mean and scale of both.

    The paper's total is `1 * CE + 2 * DIST` with $\beta = \gamma = 1$ and T = 1 on ImageNet; the
    authors' configuration for CIFAR-100 has T = 4, and the factor $T^2$ applies there too.

    The value depends on the number of classes and on the batch: a class that both rule out counts
    as one that is not correlated, and so does every class in a batch of one sample. For a student
    whose probabilities are all equal, the gradient is finite but may be as large as 1e8.

    Args:
        beta: weight of the correlation within samples, at least 0.
        gamma: weight of the correlation within classes, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature, beta or gamma out of range.
    """

    paper: ClassVar[str] = "Huang et al. 2022, arXiv 2205.10536"
    year: ClassVar[int] = 2022
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 4.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.beta = not_negative("DIST", "beta", beta)
        self.gamma = not_negative("DIST", "gamma", gamma)
        self.temperature = positive("DIST", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of both distances over the joint batch of all processes, a scalar."""
        joined = JoinedBatch(batch, positions=True)
        log_p = teacher_of(self, teacher).log_probs(self.temperature)
        p = joined(log_p).exp()
        log_q = student.log_probs(self.temperature)
        q = joined(log_q).exp()
        # Inter-class relations of each sample, then intra-class relations of each class.
        rows = pearson_distance(q, p)
        columns = pearson_distance(q.T, p.T)
        both = self.beta * rows + self.gamma * columns
        return self.temperature**2 * both
