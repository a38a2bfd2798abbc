"""Inter-channel correlations: Liu et al. 2021."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    connector,
    feature_of,
    not_built,
    same_size,
    shapes_of,
)
from kd_lightning.losses._gather import unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full

Form = Literal["code", "paper"]
"""The authors' code, or the paper's equation."""


def correlations(feature: Tensor, convention: Form = "code") -> Tensor:
    """The inner products of all pairs of channels, `(B, C, H, W)` to `(B, C, C)`.

    "code" scales each row to length one; "paper" does not. A row of zeros stays zero.
    """
    # `(B, C, positions)`: the products sum over positions.
    flat = full(feature).flatten(2)
    products: Tensor = flat @ flat.transpose(1, 2)
    return unit(products) if convention == "code" else products


def correlation_distance(
    student: Tensor,
    teacher: Tensor,
    convention: Form = "code",
) -> Tensor:
    r"""The squared distance between correlation matrices R, mean over samples.

    - "code": $\frac{1}{C} \|R_S - R_T\|_F^2$ with rows of length one.
    - "paper": $\frac{1}{C^2} \|R_S - R_T\|_F^2$ without normalization (Liu et al. 2021).

    Args:
        student: `(B, C, H, W)`.
        teacher: `(B, C, H', W')`; sizes may differ only in convention "code", where they cancel.
        convention: see above.

    Returns:
        A scalar; zero if the correlations agree.
    """
    own = correlations(student, convention)
    target = correlations(teacher, convention)
    difference = own - target
    channels = student.shape[1]
    # Rows of length one make the sum grow with C; the bare products make it grow with C^2.
    divisor = channels if convention == "code" else channels**2
    per_sample = difference.square().sum((1, 2))
    return per_sample.mean() / divisor


class ICKD(DistillLoss):
    """The student's channels correlate with each other as the teacher's do.

    A connector (1x1 convolution and batch norm) maps the student's layer to the teacher's channels.

    The default convention is the authors' code, which made the published numbers; its rows have
    length one, so that neither side's scale matters. The weight is not in that code; public ports
    use 500 for CIFAR-100 and 2500 for ImageNet.

    Args:
        layer: role of the last map of student and teacher. The larger map is averaged down.
        convention: "code" or "paper", see `correlation_distance`.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map.
    """

    paper: ClassVar[str] = "Liu et al. 2021, ICCV"
    year: ClassVar[int] = 2021
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self, layer: str = "map", convention: Form = "code", **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("ICKD", "layer", layer)
        self.roles = [self.layer]
        if convention not in get_args(Form):
            raise UserError(
                f"ICKD: convention must be 'code' or 'paper', got {convention!r}"
            )
        self.convention = convention
        self.connector: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the connector."""
        own, target = shapes_of(
            "ICKD", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        self.connector = connector(own[1], target[1])

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`correlation_distance` between the mapped feature and the teacher's, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("ICKD", teacher_of(self, teacher), self.layer)
        if self.connector is None:
            raise not_built("ICKD")
        student_map = feature_of("ICKD", student, self.layer)
        own = adapted(self.connector, student_map)
        own, target = same_size(own, target)
        # Sums over positions need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            return correlation_distance(own, target, self.convention)
