"""The teacher's own value of the monitored metric, beside the student's."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.metrics import TaskMetrics
from kd_lightning.types import Batch, Output


class TeacherMetric(nn.Module):
    """Measures a frozen teacher once per split; later evaluations repeat the value at no cost.

    Args:
        metrics: fresh metrics of the task.
        monitor: the metric to report.
    """

    def __init__(self, metrics: TaskMetrics, monitor: str) -> None:
        super().__init__()
        self.metrics = metrics
        self.monitor = monitor
        self._values: dict[str, Tensor] = {}
        self._measures = False

    def forget(self) -> None:
        """Measure every split again: another stage may evaluate other samples."""
        self._values = {}

    def begin(self, stage: str) -> None:
        """An evaluation begins.

        Args:
            stage: "val" or "test".
        """
        self._measures = stage not in self._values
        if self._measures:
            self.metrics.reset()

    def update(self, teacher: Output | None, batch: Batch) -> None:
        """Add the teacher's output for one batch, if this split is not measured yet.

        Args:
            teacher: with logits `(N, K)`; `None` if there is none.
            batch: that it was computed for.
        """
        if self._measures and teacher is not None:
            self.metrics.update(teacher, None, batch)

    def finish(self, stage: str, whole: bool) -> dict[str, Tensor]:
        """The metric by its name in the logs; empty without a teacher or labels.

        Args:
            stage: that ends.
            whole: whether the whole split was evaluated, so that the value holds for later.
        """
        name = f"{stage}_teacher_{self.monitor}"
        if not self._measures:
            # A frozen teacher has the same value in every epoch.
            if stage not in self._values:
                return {}
            return {name: self._values[stage]}
        value = self.metrics.compute().get(self.monitor)
        if value is None:
            return {}
        value = value.float()
        # A part of a split, as the sanity check evaluates, has another value.
        if whole:
            self._values[stage] = value
        return {name: value}
