"""Logit matching: Ba and Caruana 2014."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import BaseOptions, DistillLoss, teacher_of
from kd_lightning.types import Batch, Output, full

Reduction = Literal["sum", "mean"]


def logit_mse(
    student: Tensor,
    teacher: Tensor,
    classes: Reduction = "sum",
    center: bool = False,
) -> Tensor:
    r"""$\frac{1}{2N} \sum_n \sum_k (z_{nk} - v_{nk})^2$ (Ba and Caruana 2014, equation 1).

    Args:
        student: logits $z$, `(N, K)`.
        teacher: logits $v$, `(N, K)`.
        classes: "sum" over the classes, as in the paper, or "mean", as in many ports: K times
            smaller.
        center: subtract each row's mean logit first. With `classes="mean"` this is the limit of
            $T^2\,\mathrm{KL}$ as T grows (Hinton et al. 2015, section 2.1).

    Returns:
        A scalar; zero if both agree.
    """
    # Half precision would lose most digits of a difference between nearly equal logits.
    difference = full(student) - full(teacher)
    if center:
        difference = difference - difference.mean(-1, keepdim=True)
    squares = difference.square()
    per_row = squares.sum(-1) if classes == "sum" else squares.mean(-1)
    # The paper's 1 / 2, which cancels in the gradient.
    return 0.5 * per_row.mean()


class LogitMSE(DistillLoss):
    """Half the squared distance between logits; for regression, between predicted values.

    Args:
        classes: "sum" over classes (the paper) or "mean" (many ports).
        center: subtract each row's mean logit first, as in the high-temperature limit of KD.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if `classes` is neither "sum" nor "mean".
    """

    paper: ClassVar[str] = "Ba and Caruana 2014, arXiv 1312.6184"
    year: ClassVar[int] = 2014
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(
        self,
        classes: Reduction = "sum",
        center: bool = False,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if classes not in get_args(Reduction):
            raise UserError(
                f"LogitMSE: classes must be 'sum' or 'mean', got {classes!r}"
            )
        self.classes = classes
        self.center = center

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`logit_mse` between the logits of both networks, a scalar."""
        target = teacher_of(self, teacher).logits
        return logit_mse(student.logits, target, self.classes, self.center)
