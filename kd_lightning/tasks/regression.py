"""Real-valued targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from kd_lightning.metrics import TaskMetrics
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task, values_of_positions
from kd_lightning.tasks.columns import Column, as_numbers
from kd_lightning.types import Batch, Output, full


class RegressionMetrics(TaskMetrics):
    """Mean squared error, mean absolute error and R^2 over labelled values.

    For students also the mean squared distance to the teacher's values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mse = MeanSquaredError()
        self.mae = MeanAbsoluteError()
        self.r2 = R2Score()
        self.teacher_mse = MeanSquaredError()

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add the values of a batch."""
        values = full(student.logits)[:, 0]
        if teacher is not None:
            teacher_values = full(teacher.logits)[:, 0]
            self.teacher_mse.update(values, teacher_values)
        labels = batch.labels.to(values.dtype)
        labelled = ~labels.isnan()
        # torchmetrics refuses an empty tensor.
        if bool(labelled.any()):
            known_values = values[labelled]
            known_labels = labels[labelled]
            for metric in (self.mse, self.mae, self.r2):
                metric.update(known_values, known_labels)

    def named(self) -> Mapping[str, Metric]:
        """The metrics by the names under which they are logged."""
        return {
            "mse": self.mse,
            "mae": self.mae,
            "r2": self.r2,
            "teacher_mse": self.teacher_mse,
        }

    def compute(self) -> dict[str, Tensor]:
        """All values by name; R^2 only if it is defined."""
        values = super().compute()
        # R^2 is undefined for fewer than two values.
        if self.r2.update_called and int(self.r2.total) < 2:
            del values["r2"]
        return values


class Regression(Task):
    """Predict D real values for each sample.

    Each value is one row of width 1. A target of NaN marks an unknown value.
    """

    name: ClassVar[str] = "regression"
    monitor: ClassVar[str] = "mse"
    mode: ClassVar[Literal["max", "min"]] = "min"
    count: ClassVar[str] = "mse"
    count_is_sum: ClassVar[bool] = False

    def metrics(self, spec: Spec) -> RegressionMetrics:
        """Fresh metrics over all D values."""
        return RegressionMetrics()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The predicted values themselves, `(B, D)`."""
        return logits

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """One row of width 1 for each value: `(B, D)` to `(B * D, 1)`."""
        values = values_of_positions(logits, batch)
        return values[:, None]

    def row_width(self, spec: Spec) -> int:
        """One: the predicted value."""
        return 1

    def blank_target(self, spec: Spec, samples: int) -> Tensor:
        """A target of zeros, float32 `(samples, D)`."""
        return torch.zeros(samples, spec.num_classes)

    def target_names(self, columns: Mapping[str, Column]) -> tuple[str, ...]:
        """The names of the target columns; each holds one real value."""
        return tuple(columns)

    def encode_target(
        self, columns: Mapping[str, Column], names: tuple[str, ...]
    ) -> Tensor:
        """The values of each row, float32 `(N, D)`; NaN if missing.

        Raises:
            UserError: if a value is not a finite number.
        """
        values: list[Tensor] = []
        for name in names:
            numbers = as_numbers(name, columns[name])
            values.append(torch.from_numpy(numbers))
        return torch.stack(values, dim=-1).float()

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The predicted values `(B, D)`, the index `(B,)` and the target `(B, D)`."""
        values = output.logits.view(batch.target.shape)
        return {
            "logits": values,
            "index": batch.index,
            "target": batch.target,
        }

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """The mean squared error of each sample's known values, float64 `(N,)`."""
        values = stored["logits"].double()
        target = stored["target"].double()
        errors = values - target
        # An unknown value is NaN, and does not count.
        return torch.nanmean(errors.square(), dim=-1)
