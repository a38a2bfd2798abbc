"""The statistics of batch normalization as a prior of images: Yin et al. 2020 (DeepInversion)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import check_layers
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import (
    BaseOptions,
    MeanOver,
    Probe,
    not_negative,
    positive,
)
from kd_lightning.losses.generator.base import GeneratorLoss, output_of
from kd_lightning.losses.generator.dafl import one_hot_loss
from kd_lightning.losses.gjsd import jensen_shannon
from kd_lightning.types import Batch, Output, full


def sample_statistics(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over the positions of each sample.

    Args:
        feature: `(B, C, ...)`; without positions, the variance is zero.

    Returns:
        `(B, C)` each.
    """
    # A vector is a map of one position.
    values = full(feature)
    values = values.flatten(2) if feature.ndim > 2 else values[:, :, None]
    return values.mean(2), values.var(2, correction=0)


def statistics_distance(
    means: Tensor,
    variances: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
) -> Tensor:
    r"""$\|\mu - \hat\mu\|_2 + \|\sigma^2 - \hat\sigma^2\|_2$ of a batch and a normalization layer.

    Yin et al. 2020, equation 4. Mean and variance of the batch follow from those of its samples,
    which have equally many positions.

    Args:
        means: of each sample, `(N, C)`.
        variances: of each sample, biased, `(N, C)`.
        running_mean: of the layer, `(C,)`.
        running_var: of the layer, `(C,)`.

    Returns:
        A scalar.
    """
    mean = means.mean(0)
    # Within samples and between them: both terms are small, unlike E[x^2] and E[x]^2.
    variance = variances.mean(0) + means.var(0, correction=0)
    of_mean = mean - running_mean.to(mean.dtype)
    of_variance = variance - running_var.to(mean.dtype)
    distance: Tensor = of_mean.norm() + of_variance.norm()
    return distance


def total_variation(images: Tensor) -> Tensor:
    """Norms of the differences to the next pixel in four directions, summed, for each image.

    As in the authors' code: to the right, below, and on both diagonals. Their norms are over a
    batch of B images, and so are the square root of B times as large.

    Args:
        images: `(B, C, H, W)`.

    Returns:
        `(B,)`.
    """
    # Right, down, and both diagonals.
    differences = [
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:] - images[:, :, :-1],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    ]
    norms = []
    for difference in differences:
        flat = full(difference).flatten(1)
        norms.append(torch.linalg.vector_norm(flat, dim=1))
    return torch.stack(norms).sum(0)


class _NormInputs:
    """The hook of one normalization layer: the statistics of its last input with a gradient.

    An object and not a closure, so that a deep copy of the teacher feeds the copy of the loss.
    """

    def __init__(self) -> None:
        self.statistics: tuple[Tensor, Tensor] | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # In the student's steps and in evaluation the teacher runs without gradients.
        if args[0].requires_grad:
            self.statistics = sample_statistics(args[0])

    def taken(self) -> tuple[Tensor, Tensor]:
        """The statistics, which are then forgotten with their graph.

        Raises:
            UserError: if there are none.
        """
        if self.statistics is None:
            raise UserError(
                "DeepInversion: the teacher has not seen images of a generator; use it in "
                "model.generator_losses of DataFreeModule"
            )
        statistics = self.statistics
        self.statistics = None
        return statistics


class DeepInversion(GeneratorLoss):
    r"""Images that look to the teacher's batch normalizations as its training images did.

    $w_{oh} L_{oh} + w_s \sum_l (\|\mu_l - \hat\mu_l\|_2 + \|\sigma_l^2 - \hat\sigma_l^2\|_2)
    + w_v \, TV + w_c (1 - JS)$ (Yin et al. 2020, equations 3 to 8), over the joint batch of all
    processes:

    - $L_{oh}$ is DAFL's cross-entropy with the teacher's own decision. The paper optimizes images
      for given classes instead; a generator decides itself which class a noise vector is. For
      equally frequent classes add `DAFL` with its entropy term alone.
    - $\mu_l$ and $\sigma_l^2$ are the statistics of the inputs of the teacher's batch normalization
      layer l, and those with a hat its running ones.
    - TV is `total_variation`, mean over images.
    - JS is the Jensen-Shannon divergence of both networks at a temperature: adaptive DeepInversion,
      which asks for images on which they disagree. The authors' code clamps probabilities to
      [0.01, 0.99] and exchanges the arguments of its divergences; this is the plain one.

    The authors' code for CIFAR-10 has $w_s$ = 100, and 2.5e-5 for the variation of a batch of 256,
    which is 4e-4 for its mean over images. It also shifts images by up to two random pixels;
    `DataFreeModule(generator_shift=2)` does so. Code that trains a generator with these terms uses $w_s$ = 1 to 10.

    Args:
        layers: roles of the teacher's layers whose batch normalizations count, inside them or the
            layers themselves.
        one_hot: $w_{oh}$, at least 0.
        statistics: $w_s$, at least 0. With 0 no layer is read.
        variation: $w_v$, at least 0; 0 for inputs that are no images.
        competition: $w_c$, at least 0; 0 leaves the student out.
        temperature: of the competition, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a number out of range; from `build`, if no layer has a batch normalization
            with running statistics; from `forward`, if inputs are no images.
    """

    paper: ClassVar[str] = "Yin et al. 2020, arXiv 1912.08795"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "generator"
    needs: ClassVar[tuple[str, ...]] = ("teacher logits", "teacher batch norms")
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        layers: Sequence[str] = ("stem", "stage1", "stage2", "stage3"),
        one_hot: float = 1.0,
        statistics: float = 10.0,
        variation: float = 4e-4,
        competition: float = 0.0,
        temperature: float = 3.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layers = check_layers("DeepInversion", layers)
        self.one_hot = not_negative("DeepInversion", "one_hot", one_hot)
        self.statistics = not_negative("DeepInversion", "statistics", statistics)
        self.variation = not_negative("DeepInversion", "variation", variation)
        self.competition = not_negative("DeepInversion", "competition", competition)
        self.temperature = positive("DeepInversion", "temperature", temperature)
        # In lists, because the layers belong to the teacher: submodules would be saved twice.
        self._norms: list[tuple[_BatchNorm, _NormInputs]] = []
        self._handles: list[RemovableHandle] = []

    @property
    def student_roles(self) -> set[str]:
        """None: the competition reads logits."""
        return set()

    @property
    def teacher_roles(self) -> set[str]:
        """The layers whose batch normalizations count."""
        if self.statistics > 0:
            return set(self.layers)
        return set()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Watch the inputs of the teacher's batch normalizations."""
        if teacher is None:
            raise UserError(
                "DeepInversion needs a teacher; use DataFreeModule with model.teacher"
            )
        # `build` may run again; two hooks would watch each layer twice.
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._norms = []
        if self.statistics == 0:
            return
        for norm in _norms_in([teacher.modules[role] for role in self.layers]):
            inputs = _NormInputs()
            self._handles.append(norm.register_forward_pre_hook(inputs))
            self._norms.append((norm, inputs))
        if not self._norms:
            raise UserError(
                f"DeepInversion: the teacher's layers {', '.join(self.layers)} have no batch "
                "normalization with running statistics; name layers that have, or use DAFL"
            )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of all terms, a scalar.

        Args:
            student: logits `(B, K)` for the images, with their graph.
            teacher: the same.
            batch: its inputs are the images.
        """
        target = output_of(self, teacher)
        joined = JoinedBatch(batch)
        total = self.one_hot * one_hot_loss(joined(full(target.logits)))
        if self.statistics > 0:
            total = total + self.statistics * self._statistics(joined)
        # A term of weight 0 is not computed: each one costs time in every step of the
        # generator.
        if self.variation > 0:
            variation = joined(total_variation(_images_of(batch))).mean()
            total = total + self.variation * variation
        if self.competition > 0:
            log_q = joined(student.log_probs(self.temperature))
            log_p = joined(target.log_probs(self.temperature))
            agreement = 1 - jensen_shannon(log_q, log_p, 0.5)
            total = total + self.competition * agreement
        return total

    def _statistics(self, joined: JoinedBatch) -> Tensor:
        """`statistics_distance`, summed over layers: a scalar."""
        distances = []
        for norm, inputs in self._norms:
            means, variances = inputs.taken()
            distance = statistics_distance(
                joined(means),
                joined(variances),
                norm.get_buffer("running_mean"),
                norm.get_buffer("running_var"),
            )
            distances.append(distance)
        return torch.stack(distances).sum()


def _norms_in(layers: Sequence[nn.Module]) -> list[_BatchNorm]:
    """The batch normalizations with running statistics of some layers, each once."""
    found: dict[int, _BatchNorm] = {}
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                # Layers may contain each other, and the roles are the user's choice.
                found[id(module)] = module
    return list(found.values())


def _images_of(batch: Batch) -> Tensor:
    """The images `(B, C, H, W)` of a batch; UserError if its inputs are something else."""
    images = batch.inputs
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UserError(
            "DeepInversion: the total variation needs images (B, C, H, W); set variation to 0"
        )
    return images
