"""How a Lightning module validates, tests and predicts."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from kd_lightning.row_chunks import row_parts
from kd_lightning.teachers.base import Teacher
from kd_lightning.training.objective import Teachers
from kd_lightning.training.prepared_module import PreparedModule
from kd_lightning.types import Batch, Output


class EvaluatedModule(PreparedModule):
    """Measures the student with its task's metrics, and the teacher once per split."""

    def _teacher_output(self, batch: Batch) -> Output | None:
        """The teacher's output for a batch; `None` if there is no teacher."""
        teacher = self.active_teacher
        if teacher is None:
            return None
        return cast(Output, teacher(batch))

    @property
    def compared_teacher(self) -> Teacher | None:
        """The teacher that metrics compare with; `None` if it predicts no classes of the data."""
        if not self.objective.teacher_predicts:
            return None
        return self.active_teacher

    def targets(self, batch: Batch) -> Teachers:
        """What the losses of `net` learn from on this batch; `None` without a teacher."""
        if not self.objective.uses_teacher:
            return None
        return self._teacher_output(batch)

    def _begin_evaluation(self, stage: str) -> None:
        if self.metrics is not None and self.teacher_metric is not None:
            self.metrics.reset()
            self.teacher_metric.begin(stage)

    def on_validation_epoch_start(self) -> None:
        """Start with empty metrics."""
        self._begin_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Start with empty metrics."""
        self._begin_evaluation("test")

    def _evaluate(self, batch: Batch) -> Output:
        """The student's output; the batch is added to the metrics."""
        assert self.metrics is not None
        assert self.teacher_metric is not None
        output = self.learner(batch)
        student = self.objective.predict(output, batch)
        # A placeholder stands for no samples, but takes part in collective calls.
        if not batch.placeholder:
            teacher = None
            if self.compared_teacher is not None:
                teacher = self._teacher_output(batch)
            for part in row_parts(student, teacher, batch, self.learner.row_chunk):
                self.metrics.update(part.student, part.teacher, part.batch)
                self.teacher_metric.update(part.teacher, part.batch)
        return student

    def _log_metrics(self, stage: str) -> None:
        assert self.metrics is not None
        values = {}
        for name, value in self.metrics.compute().items():
            values[f"{stage}_{name}"] = value.float()
        if self.teacher_metric is not None:
            # The sanity check sees a few batches only: its value must not stand for the split.
            whole = not self.trainer.sanity_checking
            # A teacher that learns has another value after every epoch.
            teacher = self.active_teacher
            if teacher is not None and teacher.learns:
                whole = False
            values |= self.teacher_metric.finish(stage, whole=whole)
        self.log_dict(values)

    def metric_names(self, stage: str) -> list[str]:
        """The names of the metrics that an evaluation logs.

        Args:
            stage: "val" or "test".
        """
        assert self.task is not None
        assert self.metrics is not None
        names = []
        for name in self.metrics.names():
            # Comparisons with a teacher need one.
            if self.compared_teacher is not None or not name.startswith("teacher_"):
                names.append(f"{stage}_{name}")
        if self.compared_teacher is not None:
            names.append(f"{stage}_teacher_{self.task.monitor}")
        return names

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics.

        Args:
            batch: of the validation split.
            batch_idx: in the split.
        """
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `val_NAME`."""
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics; returns what a test stores per sample.

        Args:
            batch: of the test split.
            batch_idx: in the split.
        """
        assert self.task is not None
        student = self._evaluate(batch)
        outputs = self.task.test_outputs(student, batch)
        return _without_placeholder(outputs, batch)

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test_NAME`."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The task's predictions for a batch, by name.

        Args:
            batch: without labels, or with labels that are not read.
            batch_idx: in the split.
        """
        assert self.task is not None
        output = self.learner(batch)
        student = self.objective.predict(output, batch)
        predictions = self.task.predictions(student, batch)
        return _without_placeholder(predictions, batch)


def _without_placeholder(outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """No rows for a batch that stands for no samples."""
    if not batch.placeholder:
        return outputs
    empty = {}
    for name, tensor in outputs.items():
        empty[name] = tensor[:0]
    return empty
