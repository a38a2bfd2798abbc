"""Prime-aware adaptive distillation: Zhang et al. 2020."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor, nn

from kd_lightning.losses._adapters import (
    BatchNorm,
    adapted,
    check_role,
    feature_of,
    not_built,
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

EPS = 1e-6
"""Smallest variance: the loss of an element is at least its logarithm, -13.8."""


def adaptive_distance(student: Tensor, teacher: Tensor, log_variance: Tensor) -> Tensor:
    r"""The mean over samples and channels of $(t - s)^2 / (\epsilon + e^v) + v$, in nats.

    Twice the negative log-likelihood of a Gaussian of variance $e^v$, without its constant (Zhang
    et al. 2020). Samples that are hard to predict get a large variance and little weight.

    Args:
        student: s, `(B, D)`.
        teacher: t, `(B, D)`.
        log_variance: v, `(B, D)`.

    Returns:
        A scalar; for a given difference its minimum is near $v = \log (t - s)^2$.
    """
    log_variance = full(log_variance)
    squares = (full(teacher) - full(student)).square()
    variance = EPS + log_variance.exp()
    # The second term keeps the variance from growing without bound.
    terms = squares / variance + log_variance
    return terms.mean()


class _LogVariance(nn.Module):
    """A linear layer and batch norm, `(B, D)` to `(B, D)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = BatchNorm(width)

    def forward(self, feature: Tensor) -> Tensor:
        """The log variance of each value, `(B, D)`."""
        value = self.linear(feature)
        # `BatchNorm` is for maps: one position stands for a vector.
        normalized: Tensor = self.norm(value[:, :, None, None])
        return normalized[:, :, 0, 0]


class PAD(DistillLoss):
    """The squared distance of pooled features, less for samples that the student cannot predict.

    The student's feature gives a log variance for each sample and channel (a linear layer and batch
    norm). If the widths differ, a linear layer maps the student's feature to the teacher's width
    first; the published runs have equal widths. Uniform weights are the plain squared distance.

    Two stages are two runs: `adaptive: false` (`configs/methods/pad_l2.yaml`) next to the hard
    loss, then `adaptive: true` (`configs/methods/pad.yaml`) for 30 epochs at a rate of 0.002, from
    the first run's `last.ckpt` (`--model.init_from`). Both runs must use the same name for the
    loss.

    A student that equals its teacher is no minimum: the smaller the variance then, the lower the
    loss, down to about -13.8. Batch norm couples the samples of a batch.

    Args:
        layer: role of the pooled features of student and teacher, vectors `(B, D)`.
        adaptive: weight by the variance; false: the mean of squared differences.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: from `build`, if a layer does not return vectors.
    """

    paper: ClassVar[str] = "Zhang et al. 2020, ECCV"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "penultimate",
        adaptive: bool = True,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("PAD", "layer", layer)
        self.roles = [self.layer]
        self.adaptive = adaptive
        self.adapter: nn.Module | None = None
        self.log_variance: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the log variance, and the linear layer to the teacher's width."""
        own, target = shapes_of(
            "PAD", student, teacher, (self.layer, self.layer), ranks=(2,)
        )
        if own[1] != target[1]:
            self.adapter = nn.Linear(own[1], target[1])
        # It exists in the first stage too, so that the second continues with that stage's adapter.
        self.log_variance = _LogVariance(target[1])
        self.log_variance.requires_grad_(self.adaptive)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`adaptive_distance`, or the mean squared difference without `adaptive`: a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("PAD", teacher_of(self, teacher), self.layer)
        own = feature_of("PAD", student, self.layer)
        if self.log_variance is None:
            raise not_built("PAD")
        if self.adapter is not None:
            own = adapted(self.adapter, own)
        if not self.adaptive:
            return (own - target).square().mean()
        return adaptive_distance(own, target, adapted(self.log_variance, own))
