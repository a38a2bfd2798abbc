"""The contract of a distillation loss, and what all losses share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypedDict

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.types import Batch, Output

# Losses import these from here, together with their base class.
from kd_lightning.types import MeanOver as MeanOver
from kd_lightning.types import count_labelled as count_labelled
from kd_lightning.types import is_labelled as is_labelled
from kd_lightning.types import weight_of as weight_of


class BaseOptions(TypedDict, total=False):
    """The constructor arguments that every loss inherits; see `DistillLoss`."""

    weight: float
    start: int
    end: int | None
    warmup: int


NEEDS_OF_CLASSES = {"teacher logits", "all teacher logits", "teacher classifier"}
"""Entries of `DistillLoss.needs` that ask for a teacher of the data's own classes."""


@dataclass
class Probe:
    """One network as a loss sees it before training.

    Attributes:
        output: logits and features of a blank batch of two samples.
        spec: describes the data.
        modules: the network's layers by role, for losses that read a layer's weights.
    """

    output: Output
    spec: Spec = field(default_factory=lambda: Spec(data="unknown"))
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


class DistillLoss(nn.Module):
    """A loss between a student's and a teacher's output: one unweighted scalar.

    A subclass implements `forward`, and `build` if it has adapters. Its parameters train together
    with the student and are stored in the training checkpoint, never in the exported student. All
    state must be in parameters or buffers, so that a run can be resumed.

    Args:
        weight: multiplies the loss in the total; at least 0.
        start: first epoch in which the loss is active.
        end: first epoch in which it is no longer active; `None` for no end.
        warmup: number of epochs, counted from `start`, over which the weight rises linearly from
            `weight / warmup` to `weight`.

    Raises:
        UserError: for a negative or non-finite weight, or an empty span of epochs.

    Class attributes:
        paper, year, family: documentation, shown by `kd list methods`.
        needs: what the loss reads, shown by `kd list methods`. A loss that reads no logits and no
            classifier of the teacher also learns from one of other classes, or of none.
        uses_teacher: whether `forward` reads the teacher's output.
        mean_over: what `forward` averages over; a constructor may set it on the instance.
        compares_classes: whether the loss works on distributions over classes. Such a loss refuses
            real-valued outputs, which have rows of width 1.
        exact_logits: whether the loss needs every teacher logit exactly. Such a loss refuses a
            cache that stores only the largest logits. Any other loss on the teacher's distribution
            reads it with `Output.paired_log_probs` and names its temperature in
            `teacher_temperatures`.
        minimum_at_teacher: whether a student that equals its teacher is a minimum of the loss,
            with the value 0 and no gradient. `tests/losses/properties.py` checks it.
        row_wise: whether the loss is the mean over rows, or over labelled rows, of something that
            depends on the logits and the label of that row alone. Such a loss can be computed from
            the logits of a few rows at a time, and again in the backward pass.
        class_pairs: whether each training sample must be accompanied by another one of its class;
            see `Batch.paired`.
        for_generator: whether a generator minimizes the loss, and not a student; see
            `DataFreeModule`.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    family: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("teacher logits",)
    uses_teacher: ClassVar[bool] = True
    exact_logits: ClassVar[bool] = False
    compares_classes: ClassVar[bool] = False
    minimum_at_teacher: ClassVar[bool] = False
    row_wise: ClassVar[bool] = False
    class_pairs: ClassVar[bool] = False
    for_generator: ClassVar[bool] = False
    mean_over: MeanOver = "rows"

    def __init__(
        self,
        weight: float = 1.0,
        start: int = 0,
        end: int | None = None,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        # NaN passes a comparison such as `weight < 0`, and would silently ruin the run.
        if not is_number(weight) or weight < 0:
            raise UserError(
                f"{name}: weight must be a finite number of at least 0, got {weight}"
            )
        epochs = [start, warmup] if end is None else [start, warmup, end]
        if not all(isinstance(epoch, int) for epoch in epochs):
            raise UserError(
                f"{name}: start, end and warmup must be whole epochs, "
                f"got {start}, {end} and {warmup}"
            )
        if start < 0 or warmup < 0 or (end is not None and end <= start):
            raise UserError(
                f"{name}: start and warmup must be at least 0 and end after start, "
                f"got {start}, {warmup}, {end}"
            )
        self.weight = weight
        self.start = start
        self.end = end
        self.warmup = warmup
        # The roles that the loss reads from both networks. A loss that reads different roles from
        # student and teacher overrides the two properties below.
        self.roles: Sequence[str] = ()

    @property
    def student_roles(self) -> set[str]:
        """Roles of the student's layers that this loss reads."""
        return set(self.roles)

    @property
    def teacher_roles(self) -> set[str]:
        """Roles of the teacher's layers that this loss reads."""
        return set(self.roles)

    @property
    def needs_teacher_classes(self) -> bool:
        """Whether the teacher must predict the data's classes."""
        return self.uses_teacher and not NEEDS_OF_CLASSES.isdisjoint(self.needs)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the loss reads the teacher's distribution.

        A top-k cache stores the log-sum-exp of the rest for these.
        """
        return ()

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch; the first epoch is 0."""
        if epoch < self.start or (self.end is not None and epoch >= self.end):
            return 0.0
        # Epoch `start` already has a part of the weight: a loss with weight 0 would waste it.
        if self.warmup:
            progress = (epoch - self.start + 1) / self.warmup
            return self.weight * min(1.0, progress)
        return self.weight

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create adapters from the shapes of both networks.

        Called once, before the optimizer exists.

        Raises:
            UserError: if the networks or the data do not fit the loss.
        """

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The unweighted loss, a scalar.

        Args:
            student: logits `(N, K)`, one row per predicted position, and features by role.
            teacher: the same of the teacher; `None` if there is no teacher.
            batch: `labels` `(N,)` belong to the rows; `index` `(B,)` identifies the samples.
        """
        raise NotImplementedError

    def predict(self, student: Output, batch: Batch) -> Output:
        """The output that is evaluated: the student's own, unless an adapter replaces it.

        SimKD, for example, predicts with the teacher's classifier on adapted features.
        """
        return student

    def on_epoch_start(self, epoch: int) -> None:
        """Hook: an epoch of training begins; the first epoch is 0."""

    def after_step(self) -> None:
        """Hook: the optimizer has just updated the weights."""


def is_number(value: float) -> bool:
    """Whether `value` is a finite number; booleans are not numbers here."""
    # `True` is an int to Python. As a weight or a temperature it is a mistake in the YAML.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def positive(owner: str, name: str, value: float) -> float:
    """Return `value` as a float if it is a finite number above zero.

    Raises:
        UserError: otherwise; the message names the loss `owner` and its argument `name`.
    """
    if not is_number(value) or value <= 0:
        raise UserError(
            f"{owner}: {name} must be a finite number greater than 0, got {value}"
        )
    return float(value)


def not_negative(owner: str, name: str, value: float) -> float:
    """Return `value` as a float if it is a finite number of at least zero.

    Raises:
        UserError: otherwise; the message names the loss `owner` and its argument `name`.
    """
    if not is_number(value) or value < 0:
        raise UserError(
            f"{owner}: {name} must be a finite number of at least 0, got {value}"
        )
    return float(value)


def teacher_of(owner: DistillLoss, teacher: Output | None) -> Output:
    """The teacher's output without its graph.

    Raises:
        UserError: if there is no teacher.
    """
    if teacher is None:
        raise UserError(
            f"{type(owner).__name__} needs a teacher; use DistillationModule with model.teacher"
        )
    # The teacher is a constant of the loss, even if its output carries a graph.
    return teacher.detached()
