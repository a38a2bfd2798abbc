"""Wasserstein distillation of features: Lv et al. 2024."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    connector,
    feature_of,
    not_built,
    shapes_of,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full

EPSILON = 1e-5
"""Added to each variance before its square root, as in the authors' code."""


def cell_bounds(length: int, grid: int) -> list[tuple[int, int]]:
    """First position of each cell along a side, and the one behind its last.

    Cells overlap if the side is not a multiple of the grid, as in adaptive pooling.

    Args:
        length: positions of the side.
        grid: cells of the side.
    """
    bounds = []
    for cell in range(grid):
        first = cell * length // grid
        # Rounded up, so that the cells cover the whole side.
        end = -(-(cell + 1) * length // grid)
        bounds.append((first, end))
    return bounds


def cell_statistics(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in each cell.

    The variance is unbiased. A cell with a single position has none.

    Args:
        maps: `(B, C, H, W)`.
        grid: cells along each side.

    Returns:
        `(B, C, G)` each, for G cells.
    """
    means = []
    deviations = []
    rows = cell_bounds(maps.shape[2], grid)
    columns = cell_bounds(maps.shape[3], grid)
    for top, bottom in rows:
        for left, right in columns:
            cell = maps[:, :, top:bottom, left:right].flatten(2)
            means.append(cell.mean(2))
            variance = cell.var(2, correction=1)
            deviations.append((variance + EPSILON).sqrt())
    return torch.stack(means, 2), torch.stack(deviations, 2)


def gaussian_distance(
    student: Tensor,
    teacher: Tensor,
    mean_weight: float = 4.0,
    grid: int = 1,
) -> Tensor:
    r"""The squared Wasserstein distance between Gaussians with diagonal covariance.

    $\sum_c r (\mu_c^S - \mu_c^T)^2 + (\sigma_c^S - \sigma_c^T)^2$ over channels, mean over samples
    and cells (Lv et al. 2024, section 3.2); r weighs the means.

    Args:
        student: `(B, C, H, W)`.
        teacher: `(B, C, H', W')`.
        mean_weight: r.
        grid: cells along each side of both maps.

    Returns:
        A scalar; zero if mean and deviation of each channel agree in each cell.
    """
    own_means, own_deviations = cell_statistics(full(student), grid)
    means, deviations = cell_statistics(full(teacher), grid)
    of_means = (own_means - means).square().sum(1)
    of_deviations = (own_deviations - deviations).square().sum(1)
    return (mean_weight * of_means + of_deviations).mean()


class WKDF(DistillLoss):
    r"""Each channel of the student is distributed over positions as the teacher's channel is.

    A map is described by the mean and the standard deviation of each channel, a Gaussian with
    diagonal covariance; see `gaussian_distance`. A 1x1 convolution, batch normalization and ReLU
    map the student's channels to the teacher's. The authors' code also brings both maps to one
    size, which these statistics do not need.

    The authors' values on CIFAR-100: weight 0.08, which decays from epoch 150 on (not included), r
    = 4 (8 next to `WKDL`), one cell. On ImageNet: weight 0.02, r = 2, 4x4 cells and a projector of
    three convolutions (not included).

    Args:
        layer: role of the last map before global pooling, of student and teacher.
        mean_weight: r, at least 0.
        grid: cells along each side; 1 describes the whole map.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map of at
            least two positions per cell.
    """

    paper: ClassVar[str] = "Lv et al. 2024, arXiv 2412.08139"
    year: ClassVar[int] = 2024
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        mean_weight: float = 4.0,
        grid: int = 1,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("WKDF", "layer", layer)
        self.roles = [self.layer]
        self.mean_weight = not_negative("WKDF", "mean_weight", mean_weight)
        if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
            raise UserError(
                f"WKDF: grid must be a whole number of at least 1, got {grid}"
            )
        self.grid = grid
        self.projector: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projector."""
        own, target = shapes_of(
            "WKDF", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        for network, (height, width) in (("student", own[2:]), ("teacher", target[2:])):
            # The variance of a single position is not defined.
            if _smallest_cell(height, width, self.grid) < 2:
                raise UserError(
                    f"WKDF: the {network}'s layer {self.layer!r} has {height} x {width} "
                    f"positions, too few for a deviation in each of {self.grid} x {self.grid} "
                    "cells; name a larger map, or lower grid"
                )
        self.projector = nn.Sequential(connector(own[1], target[1]), nn.ReLU())

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`gaussian_distance` between both maps, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("WKDF", teacher_of(self, teacher), self.layer)
        if self.projector is None:
            raise not_built("WKDF")
        student_map = feature_of("WKDF", student, self.layer)
        own = adapted(self.projector, student_map)
        return gaussian_distance(own, target, self.mean_weight, self.grid)


def _smallest_cell(height: int, width: int, grid: int) -> int:
    """The number of positions of the smallest cell."""
    rows = min(end - first for first, end in cell_bounds(height, grid))
    columns = min(end - first for first, end in cell_bounds(width, grid))
    return rows * columns
