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
        values = full(student.logits)[:, 0]
        if teacher is not None:
            teacher_values = full(teacher.logits)[:, 0]
            self.teacher_mse.update(values, teacher_values)
        labels = batch.labels.to(values.dtype)
        labelled = ~labels.isnan()
        if bool(labelled.any()):
            for metric in (self.mse, self.mae, self.r2):
                metric.update(values[labelled], labels[labelled])

    def named(self) -> Mapping[str, Metric]:
        return {
            "mse": self.mse,
            "mae": self.mae,
            "r2": self.r2,
            "teacher_mse": self.teacher_mse,
        }

    def compute(self) -> dict[str, Tensor]:
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
        return RegressionMetrics()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The predicted values themselves, `(B, D)`."""
        return logits

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        return values_of_positions(logits, batch)[:, None]

    def row_width(self, spec: Spec) -> int:
        return 1

    def blank_target(self, spec: Spec, samples: int) -> Tensor:
        return torch.zeros(samples, spec.num_classes)

    def target_names(self, columns: Mapping[str, Column]) -> tuple[str, ...]:
        """The names of the target columns; each holds one real value."""
        return tuple(columns)

    def encode_target(
        self, columns: Mapping[str, Column], names: tuple[str, ...]
    ) -> Tensor:
        values: list[Tensor] = []
        for name in names:
            numbers = as_numbers(name, columns[name])
            values.append(torch.from_numpy(numbers))
        return torch.stack(values, dim=-1).float()

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "logits": output.logits.view(batch.target.shape),
            "index": batch.index,
            "target": batch.target,
        }

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        errors = stored["logits"].double() - stored["target"].double()
        # An unknown value is NaN, and does not count.
        return torch.nanmean(errors.square(), dim=-1)
