"""Variational information distillation: Ahn et al. 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    adapted,
    check_convention,
    check_layers,
    feature_pairs,
    same_size,
    shapes_of,
)
from kd_lightning.losses.base import DistillLoss, Probe, positive
from kd_lightning.types import Batch, Output, full


def gaussian_loss(
    mean: Tensor, target: Tensor, variance: Tensor, convention: Convention = "paper"
) -> Tensor:
    r"""$\frac{1}{2} [(t - \mu)^2 / \sigma_c^2 + \log \sigma_c^2]$: $-\log$ of a Gaussian without its constant, in nats.

    Args:
        mean: $\mu$, what the student predicts, `(B, C, H, W)` or `(B, C)`.
        target: t, the teacher's feature, the same shape.
        variance: $\sigma_c^2$, one a channel, `(C,)`, greater than 0.
        convention: "paper": summed over channels and positions, mean over the batch (Ahn et al. 2019);
            "benchmark": mean over all elements.

    Returns:
        A scalar; for a given variance smallest, $\frac{1}{2} \log \sigma_c^2$ an element, where mean and target agree.
    """
    variance = full(variance).view(-1, *[1] * (mean.ndim - 2))
    terms = 0.5 * ((full(target) - full(mean)).square() / variance + variance.log())
    return terms.flatten(1).sum(1).mean() if convention == "paper" else terms.mean()


def mean_network(student: Size, teacher: Size) -> nn.Module:
    """Three 1x1 convolutions without biases, ReLU between them, to the teacher's channels; for vectors one linear layer."""
    channels = teacher[1]
    if len(student) == 2:
        return nn.Linear(student[1], channels)
    first, second, third = (
        nn.Conv2d(width, channels, 1, bias=False) for width in (student[1], channels, channels)
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class _Gaussian(nn.Module):
    r"""What the student says of one of the teacher's layers: a mean and, for each channel, $\alpha_c$ of the variance."""

    def __init__(self, student: Size, teacher: Size, variance: float, eps: float) -> None:
        super().__init__()
        self.mean, self.eps = mean_network(student, teacher), eps
        start = variance - eps
        self.alpha = nn.Parameter(
            torch.full((teacher[1],), start + math.log(-math.expm1(-start)))
        )  # softplus, inverted

    def variance(self) -> Tensor:
        r"""$\log(1 + \exp \alpha_c) + \epsilon$, `(C,)`."""
        return F.softplus(full(self.alpha)) + self.eps

    def forward(self, student: Tensor, teacher: Tensor, convention: Convention) -> Tensor:
        student, teacher = same_size(student, teacher)
        return gaussian_loss(adapted(self.mean, student), teacher, self.variance(), convention)


class VID(DistillLoss):
    r"""The teacher's layers as Gaussians whose mean the student predicts, with a variance a channel that is trained as well.

    It bounds the mutual information between both networks' layers from below. A channel that the student cannot predict gets a
    large variance and is left alone. The loss has no floor at 0: it is negative where variances are below 1.

    | convention | sum over | `weight` |
    | --- | --- | --- |
    | "paper" | channels and positions, mean over samples | the paper's lambda |
    | "benchmark" | nothing: mean over all elements | 1 |

    In both, the mean comes from the benchmark's network (three 1x1 convolutions), since the formula leaves it open, and maps
    of different sizes are averaged down to the smaller one, as the benchmark does.

    Args:
        layers: roles of the layers, the same for student and teacher: maps `(B, C, H, W)` or vectors `(B, C)`.
        convention: "paper" or "benchmark".
        variance: of every channel at the start, greater than `eps`.
        eps: added to every variance.
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for a variance that is not greater than `eps`, or `layers` that name none or one twice; from `build`, where
            features are neither maps nor vectors, or not the same of both.
    """

    paper: ClassVar[str] = "Ahn et al. 2019, arXiv 1904.05835"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        convention: Convention = "paper",
        variance: float = 5.0,
        eps: float = 1e-5,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("VID", layers)
        self.convention = check_convention("VID", convention)
        self.variance, self.eps = positive("VID", "variance", variance), positive("VID", "eps", eps)
        if self.variance <= self.eps:
            raise UserError(f"VID: variance must be greater than eps, got {variance} and {eps}")
        self.gaussians = nn.ModuleList()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        shapes = [shapes_of("VID", student, teacher, (role, role)) for role in self.roles]
        self.gaussians = nn.ModuleList(_Gaussian(*pair, self.variance, self.eps) for pair in shapes)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        pairs = feature_pairs(self, student, teacher)
        if not self.gaussians:
            raise UserError(
                "VID has no means and variances yet; call build() with a probe of both networks"
            )
        return torch.stack(
            [g(*pair, self.convention) for g, pair in zip(self.gaussians, pairs, strict=True)]
        ).sum()
