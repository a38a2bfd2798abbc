"""Evaluation metrics, built on torchmetrics; nothing here runs in a training step."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)

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

    def names(self) -> list[str]:
        """The names of the values that `compute` can return."""
        return list(self.named())

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
        student_class = full(student.logits).argmax(-1)
        same_class = student_class == teacher.logits.argmax(-1)
        self.agreement.update(same_class.float())
        prediction, target = teacher.paired_log_probs(student)
        # KL(p || q) = sum p (log p - log q), which -inf in both would make NaN.
        log_q = finite_log_probs(prediction)
        log_p = finite_log_probs(target)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        self.kl.update(divergence.sum(-1))

    def named(self) -> dict[str, Metric]:
        """Both metrics by name."""
        return {"teacher_agreement": self.agreement, "teacher_kl": self.kl}


class BalancedAccuracy(MulticlassConfusionMatrix):
    """The mean recall of the classes that occur among the labels."""

    def compute(self) -> Tensor:
        """A scalar in [0, 1]."""
        counts = super().compute().double()
        support = counts.sum(1)
        # A class without labels has no recall; the last step leaves it out.
        recalls = counts.diagonal() / support.clamp(min=1)
        return recalls[support > 0].mean()


def by_class(classes: Sequence[str], name: str) -> list[str]:
    """The name of a metric of each class, as loggers and file formats accept it.

    Args:
        classes: their names.
        name: of the metric.
    """
    names = []
    for label in classes:
        simple = re.sub(r"[^0-9A-Za-z_-]+", "_", label)
        names.append(f"{name}_{simple}")
    return names


class ClassificationMetrics(TaskMetrics):
    """Accuracy, error count, NLL (nats) and calibration error (15 bins, L1) over labelled rows.

    For students also the agreement with the teacher and the KL from it, over all rows.

    Args:
        num_classes: K.
        classes: for which recall and F1 are reported one by one, with balanced accuracy and the
            mean F1; `None`: for none.
        top_k: report the share of rows whose label is among the k largest logits, too.
    """

    def __init__(
        self,
        num_classes: int,
        classes: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(
            num_classes, average="micro", validate_args=False
        )
        self.calibration_error = MulticlassCalibrationError(
            num_classes, n_bins=15, validate_args=False
        )
        self.errors = sum_metric()
        self.nll = mean_metric()
        self.comparison = TeacherComparison()
        self.classes = classes
        self.top_k = top_k
        # Kept apart from the others: these are optional, and two of them have a value per class.
        self.further = nn.ModuleDict()
        if classes is not None:
            self.further["balanced_accuracy"] = BalancedAccuracy(
                num_classes, validate_args=False
            )
            self.further["f1"] = MulticlassF1Score(num_classes, average="macro")
            self.further["recall_by_class"] = MulticlassRecall(
                num_classes, average=None
            )
            self.further["f1_by_class"] = MulticlassF1Score(num_classes, average=None)
        if top_k is not None:
            self.further[f"top{top_k}_accuracy"] = MulticlassAccuracy(
                num_classes, top_k=top_k, average="micro", validate_args=False
            )

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add one batch.

        Args:
            student: with logits `(N, K)`.
            teacher: with logits `(N, K)`; `None` if there is none.
            batch: that both were computed for.
        """
        # A comparison with the teacher needs no labels.
        if teacher is not None:
            self.comparison.update(student, teacher)
        logits, labels = labelled_rows(student, batch)
        if len(labels) == 0:
            return
        # In single precision, because half precision would move samples between bins.
        probs = logits.softmax(-1)
        self.accuracy.update(probs, labels)
        self.calibration_error.update(probs, labels)
        is_wrong = logits.argmax(-1) != labels
        self.errors.update(is_wrong.float())
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))
        for metric in self.further.values():
            cast(Metric, metric).update(probs, labels)

    def named(self) -> Mapping[str, Metric]:
        """All metrics by name, those of each class as one metric with a value per class."""
        further = {}
        for name, metric in self.further.items():
            further[name] = cast(Metric, metric)
        return {
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            "errors": self.errors,
            "nll": self.nll,
            **further,
            **self.comparison.named(),
        }

    def names(self) -> list[str]:
        """The names of all values, with one per class."""
        names = []
        for name in self.named():
            metric, separator, _ = name.partition("_by_class")
            if separator:
                names.extend(by_class(self.classes or (), metric))
            else:
                names.append(name)
        return names

    def compute(self) -> dict[str, Tensor]:
        """The value of each metric; those of each class under the class's name."""
        values = {}
        for name, value in super().compute().items():
            if value.ndim == 0:
                values[name] = value
            else:
                names = by_class(self.classes or (), name.removesuffix("_by_class"))
                values.update(zip(names, value, strict=True))
        return values
