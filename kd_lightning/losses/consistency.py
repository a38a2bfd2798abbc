"""The consistency cost of mean teachers: Tarvainen and Valpola 2017."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import BaseOptions, DistillLoss, teacher_of
from kd_lightning.types import Batch, Output


def probability_mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{NK} \sum_n \sum_k (q_{nk} - p_{nk})^2$.

    Args:
        student: log-probabilities $\ln q$, `(N, K)`.
        teacher: log-probabilities $\ln p$, `(N, K)`.

    Returns:
        A scalar in [0, 2 / K]; zero if both agree.
    """
    return (student.exp() - teacher.exp()).square().mean()


def sigmoid_rampup(epoch: int, length: int) -> float:
    r"""$\exp(-5 (1 - \min(e / E, 1))^2)$ of epoch e, from 0: rises from 0.0067 to 1.

    Args:
        epoch: e.
        length: E; 0 for no ramp-up.
    """
    if epoch >= length:
        return 1.0
    return math.exp(-5 * (1 - epoch / length) ** 2)


class Consistency(DistillLoss):
    r"""The mean squared difference of probabilities, over rows and classes, with a ramp-up.

    The consistency cost of Tarvainen and Valpola 2017, section 2, with the weight 100 and the
    ramp-up over 5 epochs of their code. It needs no labels, so unlabelled samples count as much as
    labelled ones. Against `kd_lightning.teachers.EMATeacher` it is the paper's method; any other
    teacher works, too.

    Args:
        rampup: number of epochs, from `start`, over which the weight rises as a sigmoid; 0 for
            none. The linear `warmup` of all losses multiplies it.
        base: weight, start, end, warmup; see `DistillLoss`. The weight is 100 by default.

    Raises:
        UserError: if `rampup` is no whole number of at least 0.
    """

    paper: ClassVar[str] = "Tarvainen and Valpola 2017, arXiv 1703.01780"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    compares_classes: ClassVar[bool] = True
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True

    def __init__(self, rampup: int = 5, **base: Unpack[BaseOptions]) -> None:
        options: BaseOptions = {"weight": 100.0}
        options.update(base)
        super().__init__(**options)
        if isinstance(rampup, bool) or not isinstance(rampup, int) or rampup < 0:
            raise UserError(
                "Consistency: rampup must be a whole number of epochs of at least 0, "
                f"got {rampup}"
            )
        self.rampup = rampup

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch, with the ramp-up; the first epoch is 0."""
        return super().weight_at(epoch) * sigmoid_rampup(
            epoch - self.start, self.rampup
        )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`probability_mse` of both distributions, a scalar."""
        target = teacher_of(self, teacher)
        return probability_mse(student.log_probs(), target.log_probs())
