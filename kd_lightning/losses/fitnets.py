"""Hints from a hidden layer: Romero et al. 2015."""

from __future__ import annotations

from typing import ClassVar, Unpack

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
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


def hint_loss(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""The squared distance between the regressed feature $r$ and the hint $u$.

    - "paper": $\frac{1}{2} \|u - r\|_2^2$, summed over the feature, mean over samples (Romero et
      al. 2015, equation 3).
    - "benchmark": the mean of $(u - r)^2$ over all elements, which is smaller by half the number of
      elements of a sample's feature.

    Args:
        student: `(B, ...)`, the regressor's output.
        teacher: the same shape.
        convention: see above.

    Returns:
        A scalar; zero if both agree.
    """
    squares = (full(student) - full(teacher)).square()
    if convention == "paper":
        # Equation 3: a sum over the feature, so that larger features weigh more.
        per_sample = squares.flatten(1).sum(1)
        return 0.5 * per_sample.mean()
    return squares.mean()


def convolution(student: Size, teacher: Size, convention: Convention) -> nn.Module:
    """A convolution from the student's map `(B, C, H, W)` to the teacher's channels and size.

    If the student's map is larger by d in a direction, the kernel is d + 1 without padding; if it
    is smaller, its size stays. The benchmark instead uses a strided convolution if the map is twice
    as large, and a transposed one if it is half as large. Its convolutions have no bias, because
    batch normalization follows and would remove it.
    """
    channels = (student[1], teacher[1])
    sizes = list(zip(student[2:], teacher[2:], strict=True))
    if convention == "benchmark":
        twice_as_large = all(own == 2 * target for own, target in sizes)
        half_as_large = all(2 * own == target for own, target in sizes)
        # Kernel, stride and padding halve or double the size exactly.
        if twice_as_large:
            return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1, bias=False)
        if half_as_large:
            return nn.ConvTranspose2d(
                *channels, kernel_size=4, stride=2, padding=1, bias=False
            )
    # A kernel of d + 1 without padding shortens a side by d.
    kernel = [max(own - target, 0) + 1 for own, target in sizes]
    height, width = kernel
    return nn.Conv2d(*channels, kernel_size=(height, width), bias=convention == "paper")


def regressor(
    student: Size,
    teacher: Size,
    convention: Convention,
    relu: bool,
) -> nn.Sequential:
    """The adapter between two features.

    Between maps: a convolution, batch normalization (benchmark only) and ReLU. Between vectors
    `(B, C)`: a linear layer and ReLU.
    """
    layers: list[nn.Module] = []
    if len(student) == 2:
        layers.append(nn.Linear(student[1], teacher[1]))
    else:
        layers.append(convolution(student, teacher, convention))
        if convention == "benchmark":
            layers.append(nn.BatchNorm2d(teacher[1]))
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class FitNets(DistillLoss):
    """A regressor on the student's guided layer predicts the teacher's hint layer.

    - "paper": a convolution and ReLU; half the squared norm, mean over samples. Used alone in a
      first stage; a KD run starts from its result.
    - "benchmark": a convolution, batch normalization and ReLU; mean over all elements. Used next to
      cross-entropy, with weight 100.

    Two stages are two runs: `configs/methods/fitnets_hint.yaml`, then any KD run with
    `--model.init_from` set to the first run's `last.ckpt`. In the first stage, layers behind the
    guided one get no gradient; on several devices it needs
    `--trainer.strategy=ddp_find_unused_parameters_true`.

    The paper's distance is a sum over the feature's elements, often thousands of times the mean;
    choose the weight and the learning rate accordingly.

    The benchmark's batch normalization couples the samples of a batch. Several processes match one
    process on the joint batch only with `--trainer.sync_batchnorm=true` (on GPUs), and not in an
    epoch's last step if it has fewer samples than there are processes.

    Args:
        student_layer: role of the student's guided layer.
        teacher_layer: role of the teacher's hint layer.
        convention: "paper" or "benchmark".
        relu: end the regressor with ReLU, so that both features come from the same non-linearity
            (section 2.2). Set it to false if the hint is taken before its ReLU, or has none.
        base: weight, start, end, warmup; see `DistillLoss`.

    Shapes:
        maps `(B, C, H, W)` or vectors `(B, C)`, the same kind on both sides. If the teacher's map
        is larger than the regressed one, it is averaged down to that size.

    Raises:
        UserError: from `build`, if features are neither maps nor vectors, or of different kinds.
    """

    paper: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550"
    year: ClassVar[int] = 2015
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        student_layer: str = "stage2",
        teacher_layer: str = "stage2",
        convention: Convention = "paper",
        relu: bool = True,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.student_layer = check_role("FitNets", "student_layer", student_layer)
        self.teacher_layer = check_role("FitNets", "teacher_layer", teacher_layer)
        self.convention = check_convention("FitNets", convention)
        self.relu = relu
        self.regressor: nn.Module | None = None

    @property
    def student_roles(self) -> set[str]:
        """The guided layer."""
        return {self.student_layer}

    @property
    def teacher_roles(self) -> set[str]:
        """The hint layer."""
        return {self.teacher_layer}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the regressor."""
        roles = (self.student_layer, self.teacher_layer)
        shapes = shapes_of("FitNets", student, teacher, roles)
        self.regressor = regressor(*shapes, self.convention, self.relu)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`hint_loss` between the regressed feature and the hint, a scalar.

        Raises:
            UserError: before `build`.
        """
        hint = feature_of("FitNets", teacher_of(self, teacher), self.teacher_layer)
        if self.regressor is None:
            raise UserError(
                "FitNets has no regressor yet; call build() with a probe of both networks"
            )
        own = feature_of("FitNets", student, self.student_layer)
        guided = adapted(self.regressor, own)
        # The regressor shrinks a larger map of the student; here a larger hint is averaged down.
        guided, hint = same_size(guided, hint)
        return hint_loss(guided, hint, self.convention)
