"""Evaluation metrics, built on torchmetrics; nothing here runs in a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kd_lightning.types import UNLABELLED, Batch, Output, finite_log_probs, full


def mean_metric() -> MeanMetric:
    """A running mean that reports NaN values instead of warning about them."""
    return MeanMetric(nan_strategy="disable")


def sum_metric() -> SumMetric:
    """A running sum that reports NaN values instead of warning about them."""
    return SumMetric(nan_strategy="disable")


def labelled_rows(output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits `(n, K)`, at least single precision, and class ids `(n,)` of the labelled positions."""
    logits = full(output.logits)
    labels = batch.labels
    labelled = labels != UNLABELLED
    # Most data is labelled throughout, and a selection would copy all of it.
    if bool(labelled.all()):
        return logits, labels
    return logits[labelled], labels[labelled]


class TaskMetrics(nn.Module, ABC):
    """The metrics of one task. A subclass implements `update` and `named`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the sums in single precision, whatever the networks are cast to."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.set_dtype(torch.float32)
        return self

    @abstractmethod
    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add one batch. Unlabelled positions count only in comparisons with the teacher."""

    @abstractmethod
    def named(self) -> Mapping[str, Metric]:
        """All metrics by name, in the order in which they are reported."""

    def compute(self) -> dict[str, Tensor]:
        """The value of each metric that has seen data, over all processes."""
        values = {}
        for name, metric in self.named().items():
            if metric.update_called:
                values[name] = torch.as_tensor(metric.compute())
        return values

    def reset(self) -> None:
        """Start again, in the inference mode that is active now.

        Sums made within inference mode cannot be added to outside of it.
        """
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class TeacherComparison(nn.Module):
    """Agreement of the student's and the teacher's predicted class, and KL from the teacher in nats."""

    def __init__(self) -> None:
        super().__init__()
        self.agreement = mean_metric()
        self.kl = mean_metric()

    def update(self, student: Output, teacher: Output) -> None:
        """Add the rows of two outputs, `(N, K)` logits each."""
        same_class = full(student.logits).argmax(-1) == teacher.logits.argmax(-1)
        self.agreement.update(same_class.float())
        prediction, target = teacher.paired_log_probs(student)
        log_q = finite_log_probs(prediction)
        log_p = finite_log_probs(target)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        self.kl.update(divergence.sum(-1))

    def named(self) -> dict[str, Metric]:
        """Both metrics by name."""
        return {"teacher_agreement": self.agreement, "teacher_kl": self.kl}


class ClassificationMetrics(TaskMetrics):
    """Accuracy, error count, NLL (nats) and calibration error (15 bins, L1) over labelled rows.

    For students also the agreement with the teacher and the KL from it, over all rows.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.calibration_error = MulticlassCalibrationError(
            num_classes, n_bins=15, validate_args=False
        )
        self.errors = sum_metric()
        self.nll = mean_metric()
        self.comparison = TeacherComparison()

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        if teacher is not None:
            self.comparison.update(student, teacher)
        logits, labels = labelled_rows(student, batch)
        if len(labels) == 0:
            return
        probs = logits.softmax(-1)
        self.accuracy.update(probs, labels)
        self.calibration_error.update(probs, labels)
        self.errors.update((logits.argmax(-1) != labels).float())
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))

    def named(self) -> Mapping[str, Metric]:
        return {
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            "errors": self.errors,
            "nll": self.nll,
            **self.comparison.named(),
        }
