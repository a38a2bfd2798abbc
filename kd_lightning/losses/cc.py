"""Correlation congruence: Peng et al. 2019."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    FrozenHead,
    check_convention,
    check_role,
    feature_of,
    not_built,
)
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


def correlations(embedding: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    r"""A Gaussian kernel between the samples of a batch, by its Taylor series.

    $K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} (f_i \cdot f_j)^p$ with rows f of
    length one (Peng et al. 2019, section 3.3). For P to infinity it is
    $e^{-\gamma \|f_i - f_j\|^2}$. A row of zeros is at a right angle to all others, and to itself.

    Args:
        embedding: `(B, D)`, in at least single precision.
        gamma: $\gamma$, greater than 0.
        order: P, at least 1.

    Returns:
        `(B, B)`.
    """
    direction = unit(embedding)
    # `(B, B)`.
    cosine = direction @ direction.T
    terms = []
    for p in range(order + 1):
        coefficient = (2 * gamma) ** p / math.factorial(p)
        terms.append(coefficient * cosine**p)
    # The factor in front of the series makes the kernel of a sample with itself nearly 1.
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


def congruence_loss(
    student: Tensor,
    teacher: Tensor,
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    r"""$\frac{1}{B^2} \|K_S - K_T\|_F^2$ (Peng et al. 2019, section 3.2).

    Args:
        student: `(B, D)`.
        teacher: `(B, D')`.
        gamma, order: of the kernel, see `correlations`.

    Returns:
        A scalar; zero if both sides have the same cosines.
    """
    own = correlations(student, gamma, order)
    target = correlations(teacher, gamma, order)
    # The mean over B * B entries is the squared Frobenius norm over B^2.
    return (own - target).square().mean()


def consecutive_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\frac{1}{B - 1} \sum_{i=1}^{B-1} \delta_i \cdot \delta_{i+1}$, $\delta_i = |s_i - t_i|$.

    The code of the CIFAR-100 benchmark, which its authors had from those of the paper. It compares
    no samples, but weights the error of each one by those of its two neighbors in the batch.

    Args:
        student: `(B, D)`.
        teacher: `(B, D)`.

    Returns:
        A scalar, which depends on the order of samples; zero if the two sides are equal, and for
        B < 2.
    """
    error = (student - teacher).abs()
    products = (error[:-1] * error[1:]).sum(1)
    return products.sum() / max(len(products), 1)


class CC(DistillLoss):
    r"""Correlations between the samples of a batch agree with those for the teacher.

    Linear layers embed the features of both networks. The loss is over the joint batch of all
    processes.

    - "paper": the squared difference of two Gaussian kernels, mean over pairs of samples. The
      paper draws batches with several samples of each class, and weights the loss by 0.003 beside
      the hard loss.
    - "benchmark" (code that the CIFAR-100 benchmark's authors had from those of the paper): the
      errors of samples that follow each other in the batch are multiplied. There is no kernel, and
      the value depends on the order of samples. The benchmark's weight is 0.02.

    In both, the teacher's embedding trains too, as in their code. Nothing then prevents the two
    embeddings from agreeing on a constant, which makes the loss zero for any student;
    `freeze_teacher` keeps the teacher's embedding at its random start.

    Args:
        layer: role of the layer, the same for student and teacher; its features are flattened.
        dimensions: number of values in an embedding.
        gamma: $\gamma$ of the kernel; convention "paper" only.
        order: the last power of the kernel's Taylor series; convention "paper" only.
        convention: "paper" or "benchmark".
        freeze_teacher: whether the teacher's embedding stays as it was drawn.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if there is no teacher or a layer
            returns no tensor.
    """

    paper: ClassVar[str] = "Peng et al. 2019, arXiv 1904.01802"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        layer: str = "penultimate",
        dimensions: int = 128,
        gamma: float = 0.4,
        order: int = 2,
        convention: Convention = "paper",
        freeze_teacher: bool = False,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        for name, value in (("dimensions", dimensions), ("order", order)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(
                    f"CC: {name} must be a whole number of at least 1, got {value}"
                )
        self.layer = check_role("CC", "layer", layer)
        self.roles = [self.layer]
        self.dimensions = dimensions
        self.gamma = positive("CC", "gamma", gamma)
        self.order = order
        self.convention = check_convention("CC", convention)
        self.freeze_teacher = freeze_teacher
        self.embeddings: nn.ModuleDict | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the embedding layers."""
        if teacher is None:
            raise UserError(
                "CC needs a teacher; use DistillationModule with model.teacher"
            )
        layers = {}
        for side, probe in (("student", student), ("teacher", teacher)):
            feature = feature_of("CC", probe.output, self.layer)
            width = feature.flatten(1).shape[1]
            layers[side] = nn.Linear(width, self.dimensions)
        self.embeddings = nn.ModuleDict(layers)
        if self.freeze_teacher:
            self.embeddings["teacher"] = FrozenHead(layers["teacher"])

    def embed(self, side: str, output: Output) -> Tensor:
        """The embedding of the "student" or "teacher": `(B, dimensions)`, in single precision.

        Raises:
            UserError: before `build`.
        """
        if self.embeddings is None:
            raise not_built("CC")
        feature = feature_of("CC", output, self.layer).flatten(1)
        layer = self.embeddings[side]
        if isinstance(layer, FrozenHead):
            frozen: Tensor = layer(feature)
            return frozen
        assert isinstance(layer, nn.Linear)
        # The functional form: a network in half precision has a layer in half precision.
        return F.linear(feature, full(layer.weight), full(layer.bias))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The loss of the joint batch of all processes, a scalar."""
        target_output = teacher_of(self, teacher)
        # Small differences of products need single precision, also under autocast.
        with torch.autocast(student.logits.device.type, enabled=False):
            joined = JoinedBatch(batch)
            own = joined(self.embed("student", student))
            target = joined(self.embed("teacher", target_output))
            if self.convention == "benchmark":
                return consecutive_loss(own, target)
            return congruence_loss(own, target, self.gamma, self.order)
