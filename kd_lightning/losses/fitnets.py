"""Hints from a hidden layer: Romero et al. 2015."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    adapted,
    check_convention,
    check_role,
    feature_of,
    same_size,
    shapes_of,
)
from kd_lightning.losses.base import DistillLoss, Probe, teacher_of
from kd_lightning.types import Batch, Output, full


def hint_loss(student: Tensor, teacher: Tensor, convention: Convention = "paper") -> Tensor:
    r"""The squared distance between the regressed feature $r$ and the hint $u$.

    - "paper": $\frac{1}{2} \|u - r\|_2^2$, summed over the feature, mean over the batch (Romero et al. 2015, equation 3).
    - "benchmark": the mean of $(u - r)^2$ over everything, smaller by half the number of elements of a sample's feature.

    Args:
        student: `(B, ...)`, the regressor's output.
        teacher: the same shape.
        convention: see above.

    Returns:
        A scalar; zero where both agree.
    """
    squares = (full(student) - full(teacher)).square()
    return 0.5 * squares.flatten(1).sum(1).mean() if convention == "paper" else squares.mean()


def convolution(student: Size, teacher: Size, convention: Convention) -> nn.Module:
    """A convolution from the student's map `(B, C, H, W)` to the teacher's channels and, where it can, to its size.

    In a direction in which the student's map is larger by d, the kernel is d + 1 without padding. The benchmark takes a
    strided convolution where the map is twice as large, and a transposed one where it is half as large. A student's map
    that is smaller otherwise keeps its size. The benchmark's have no bias here: batch normalization takes it off again.
    """
    channels, sizes = (student[1], teacher[1]), list(zip(student[2:], teacher[2:], strict=True))
    if convention == "benchmark" and all(s == 2 * t for s, t in sizes):
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1, bias=False)
    if convention == "benchmark" and all(2 * s == t for s, t in sizes):
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1, bias=False)
    height, width = (max(s - t, 0) + 1 for s, t in sizes)
    return nn.Conv2d(*channels, kernel_size=(height, width), bias=convention == "paper")


def regressor(student: Size, teacher: Size, convention: Convention, relu: bool) -> nn.Sequential:
    """Convolution, batch normalization (the benchmark's alone) and ReLU; between vectors `(B, C)` a linear layer and ReLU."""
    layers: list[nn.Module] = []
    if len(student) == 2:
        layers.append(nn.Linear(student[1], teacher[1]))
    else:
        layers.append(convolution(student, teacher, convention))
        if convention == "benchmark":
            layers.append(nn.BatchNorm2d(teacher[1]))
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class FitNets(DistillLoss):
    """A regressor on the student's guided layer is to give what the teacher's hint layer gives.

    | convention | regressor | distance | in use |
    | --- | --- | --- | --- |
    | "paper" | convolution, ReLU | half the squared norm, mean over samples | alone, in a first stage; then KD from there |
    | "benchmark" | convolution, batch normalization, ReLU | mean over all elements | beside cross-entropy, weight 100 |

    Two stages are two runs: `configs/methods/fitnets_hint.yaml`, then any KD run with `--model.init_from` its `last.ckpt`.
    In the first, layers behind the guided one get no gradient: on several devices it needs
    `--trainer.strategy=ddp_find_unused_parameters_true`. The paper's distance is a sum over the feature's elements, often
    thousands of times the mean; choose weight and learning rate by it. The benchmark's batch normalization ties the samples
    of a batch together: several processes give what one does on the joined batch with `--trainer.sync_batchnorm=true` alone
    (on GPUs), and not in an epoch's last step where it has fewer samples than there are processes.

    Args:
        student_layer: role of the student's guided layer.
        teacher_layer: role of the teacher's hint layer.
        convention: "paper" or "benchmark".
        relu: end the regressor with ReLU: what it is compared with must come from the same non-linearity (section 2.2). False
            where the hint is taken before its ReLU, or has none.
        base: weight, start, end, warmup; see DistillLoss.

    Shapes:
        maps `(B, C, H, W)` or vectors `(B, C)`, both sides alike. Where the teacher's map stays larger than the regressed
        one, it is averaged down to its size.

    Raises:
        UserError: from `build`, where features are neither maps nor vectors, or not the same of both.
    """

    paper: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550"
    year: ClassVar[int] = 2015
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(
        self,
        student_layer: str = "stage2",
        teacher_layer: str = "stage2",
        convention: Convention = "paper",
        relu: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.student_layer = check_role("FitNets", "student_layer", student_layer)
        self.teacher_layer = check_role("FitNets", "teacher_layer", teacher_layer)
        self.convention, self.relu = check_convention("FitNets", convention), relu
        self.regressor: nn.Module | None = None

    @property
    def student_roles(self) -> set[str]:
        return {self.student_layer}

    @property
    def teacher_roles(self) -> set[str]:
        return {self.teacher_layer}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        shapes = shapes_of("FitNets", student, teacher, (self.student_layer, self.teacher_layer))
        self.regressor = regressor(*shapes, self.convention, self.relu)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        hint = feature_of("FitNets", teacher_of(self, teacher), self.teacher_layer)
        if self.regressor is None:
            raise UserError(
                "FitNets has no regressor yet; call build() with a probe of both networks"
            )
        guided = adapted(self.regressor, feature_of("FitNets", student, self.student_layer))
        return hint_loss(*same_size(guided, hint), self.convention)
