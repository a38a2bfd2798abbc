"""Variational information distillation: Ahn et al. 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Unpack

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
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe, positive
from kd_lightning.types import Batch, Output, full


def gaussian_loss(
    mean: Tensor,
    target: Tensor,
    variance: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""$\frac{1}{2} [(t - \mu)^2 / \sigma_c^2 + \log \sigma_c^2]$, in nats.

    The negative log-likelihood of a Gaussian without its constant.

    Args:
        mean: $\mu$, predicted by the student, `(B, C, H, W)` or `(B, C)`.
        target: t, the teacher's feature, the same shape.
        variance: $\sigma_c^2$ per channel, `(C,)`, greater than 0.
        convention: "paper": sum over channels and positions, mean over samples (Ahn et al. 2019);
            "benchmark": mean over all elements.

    Returns:
        A scalar. For a given variance its minimum, $\frac{1}{2} \log \sigma_c^2$ per element, is
        where mean and target agree.
    """
    # Broadcast one variance per channel over the positions of a map.
    positions = [1] * (mean.ndim - 2)
    variance = full(variance).view(-1, *positions)
    squares = (full(target) - full(mean)).square()
    terms = 0.5 * (squares / variance + variance.log())
    if convention == "paper":
        return terms.flatten(1).sum(1).mean()
    return terms.mean()


def mean_network(student: Size, teacher: Size) -> nn.Module:
    """The adapter that predicts the teacher's feature from the student's.

    Between maps `(B, C, H, W)`: three 1x1 convolutions to the teacher's channels, without biases,
    with ReLU between them. Between vectors `(B, C)`: one linear layer.
    """
    channels = teacher[1]
    if len(student) == 2:
        return nn.Linear(student[1], channels)
    return nn.Sequential(
        # The paper does not specify the network; this is the one of the CIFAR-100 benchmark.
        nn.Conv2d(student[1], channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


class _Gaussian(nn.Module):
    r"""The student's prediction of one teacher layer: a mean, and $\alpha_c$ per channel."""

    def __init__(
        self,
        student: Size,
        teacher: Size,
        variance: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.mean = mean_network(student, teacher)
        self.eps = eps
        # Invert softplus, so that the first variance is `variance`. This form of log(e^x - 1)
        # neither overflows for a large x nor cancels for a small one.
        start = variance - eps
        alpha = start + math.log(-math.expm1(-start))
        self.alpha = nn.Parameter(torch.full((teacher[1],), alpha))

    def variance(self) -> Tensor:
        r"""$\log(1 + \exp \alpha_c) + \epsilon$, `(C,)`."""
        return F.softplus(full(self.alpha)) + self.eps

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        convention: Convention,
    ) -> Tensor:
        student, teacher = same_size(student, teacher)
        mean = adapted(self.mean, student)
        return gaussian_loss(mean, teacher, self.variance(), convention)


class VID(DistillLoss):
    r"""The teacher's layers as Gaussians: the student predicts the mean, the variance is trained.

    The loss bounds the mutual information between the layers of both networks from below. There is
    one variance per channel; a channel that the student cannot predict gets a large variance and
    little weight. The loss is negative if variances are below 1: it has no minimum at 0.

    - "paper": sum over channels and positions, mean over samples; `weight` is the paper's lambda.
    - "benchmark": mean over all elements; `weight` is 1.

    In both conventions the mean comes from the benchmark's network (three 1x1 convolutions),
    because the paper's formula leaves it open. Maps of different sizes are averaged down to the
    smaller one, as in the benchmark.

    Args:
        layers: roles of the layers, the same for student and teacher: maps `(B, C, H, W)` or
            vectors `(B, C)`.
        convention: "paper" or "benchmark".
        variance: the initial variance of every channel, greater than `eps`.
        eps: added to every variance.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if the variance is not greater than `eps`, or `layers` is empty or names a role
            twice; from `build`, if features are neither maps nor vectors, or of different kinds.
    """

    paper: ClassVar[str] = "Ahn et al. 2019, arXiv 1904.05835"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        convention: Convention = "paper",
        variance: float = 5.0,
        eps: float = 1e-5,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("VID", layers)
        self.convention = check_convention("VID", convention)
        self.variance = positive("VID", "variance", variance)
        self.eps = positive("VID", "eps", eps)
        if self.variance <= self.eps:
            raise UserError(
                f"VID: variance must be greater than eps, got {variance} and {eps}"
            )
        self.gaussians = nn.ModuleList()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create a mean network and the variances of each layer."""
        gaussians = []
        for role in self.roles:
            shapes = shapes_of("VID", student, teacher, (role, role))
            gaussians.append(_Gaussian(*shapes, self.variance, self.eps))
        self.gaussians = nn.ModuleList(gaussians)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over the layers of `gaussian_loss`, a scalar in nats.

        Raises:
            UserError: before `build`.
        """
        pairs = feature_pairs(self, student, teacher)
        if not self.gaussians:
            raise UserError(
                "VID has no means and variances yet; call build() with a probe of both networks"
            )
        terms = []
        for gaussian, (own, target) in zip(self.gaussians, pairs, strict=True):
            terms.append(gaussian(own, target, self.convention))
        return torch.stack(terms).sum()
