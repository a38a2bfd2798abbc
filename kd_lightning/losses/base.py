"""The base of all distillation losses, and what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.types import Batch, Output


def is_number(value: object) -> bool:
    """Whether it is a finite number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive(owner: str, name: str, value: float) -> float:
    """`value`, if it is a finite number above zero; UserError otherwise."""
    if not is_number(value) or value <= 0:
        raise UserError(f"{owner}: {name} must be a finite number greater than 0, got {value}")
    return float(value)


@dataclass
class Probe:
    """One network seen by a loss before training: the output of a small batch, and the tapped modules.

    Attributes:
        output: logits and features of a batch of two blank samples.
        modules: the tapped modules by role, for losses that read weights (a classifier to reuse, say).
        spec: what the datamodule says of the data; `source_samples` is the range of `batch.index`, for losses that remember.
    """

    output: Output
    modules: dict[str, nn.Module] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)


class DistillLoss(nn.Module):
    """A loss between a student's and a teacher's output: one unweighted scalar, the mean over the batch.

    A subclass writes `forward`, and, where it has adapters, `build`. Its parameters train with the student and are in the
    training checkpoint. The class attributes describe it to `kd list methods`.

    Args:
        weight: multiplies the loss in the total; at least 0.
        start: first epoch in which the loss counts.
        end: first epoch in which it no longer counts; `None`: to the end.
        warmup: epochs over which the weight rises linearly from `weight / warmup` to `weight`, counted from `start`.

    Raises:
        UserError: for a negative or non-finite weight, or an empty span of epochs.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    family: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("teacher logits",)
    uses_teacher: ClassVar[bool] = True

    def __init__(
        self, weight: float = 1.0, start: int = 0, end: int | None = None, warmup: int = 0
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not is_number(weight) or weight < 0:
            raise UserError(f"{name}: weight must be a finite number of at least 0, got {weight}")
        if not all(isinstance(epoch, int) for epoch in (start, warmup, 0 if end is None else end)):
            raise UserError(
                f"{name}: start, end and warmup are whole epochs, got {start}, {end} and {warmup}"
            )
        if start < 0 or warmup < 0 or (end is not None and end <= start):
            raise UserError(
                f"{name}: start and warmup must be at least 0 and end after start, got {start}, {warmup}, {end}"
            )
        self.weight, self.start, self.end, self.warmup = weight, start, end, warmup
        self.roles: Sequence[str] = ()
        """Roles of the layers that are read of both networks; where they differ, override the two properties instead."""

    @property
    def student_roles(self) -> set[str]:
        """Roles of the student's layers that this loss reads."""
        return set(self.roles)

    @property
    def teacher_roles(self) -> set[str]:
        """Roles of the teacher's layers that this loss reads."""
        return set(self.roles)

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch (from 0)."""
        if epoch < self.start or (self.end is not None and epoch >= self.end):
            return 0.0
        if self.warmup:
            return self.weight * min(1.0, (epoch - self.start + 1) / self.warmup)
        return self.weight

    def counted(self, batch: Batch) -> Tensor:
        """How many samples `forward` took the mean over: what its value weighs beside that of another process."""
        return batch.target.new_tensor(0 if batch.ghost else len(batch))

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Make adapters from the shapes of both networks. Called once, before the optimizer exists."""

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The unweighted loss, a scalar."""
        raise NotImplementedError


def teacher_of(owner: DistillLoss, teacher: Output | None) -> Output:
    """The teacher's output without its graph, or one line that says that the loss needs one."""
    if teacher is None:
        raise UserError(
            f"{type(owner).__name__} needs a teacher; use DistillationModule with model.teacher"
        )
    return teacher.detached()
