"""What is measured at evaluation, with torchmetrics; nothing here runs in a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kd_lightning.types import UNLABELLED, Output, full


class EvaluationMetrics(nn.Module):
    """Accuracy, error count, NLL (nats) and calibration error (15 bins, L1).

    For students also agreement with the teacher and KL from it. Unlabelled rows count for these two alone.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.labelled = nn.ModuleDict(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "calibration_error": MulticlassCalibrationError(
                    num_classes, n_bins=15, validate_args=False
                ),
            }
        )
        self.errors, self.nll = (
            SumMetric(nan_strategy="disable"),
            MeanMetric(nan_strategy="disable"),
        )
        self.agreement, self.kl = (
            MeanMetric(nan_strategy="disable"),
            MeanMetric(nan_strategy="disable"),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Sums stay in single precision, whatever the networks are cast to."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.set_dtype(torch.float32)
        return self

    def update(self, student: Output, teacher: Output | None, target: Tensor) -> None:
        logits = full(student.logits)
        if teacher is not None:
            self.agreement.update((logits.argmax(-1) == teacher.logits.argmax(-1)).float())
            self.kl.update(
                F.kl_div(
                    student.log_probs(), teacher.log_probs(), reduction="none", log_target=True
                ).sum(-1)
            )
        known = target != UNLABELLED
        if not bool(known.all()):
            logits, target = logits[known], target[known]
        if len(target):
            probs = logits.softmax(-1)
            for metric in cast(list[Metric], self.labelled.values()):
                metric.update(probs, target)
            self.errors.update((logits.argmax(-1) != target).float())
            self.nll.update(F.cross_entropy(logits, target, reduction="none"))

    def items(self) -> dict[str, Metric]:
        """The metrics that have seen data, by name."""
        named: dict[str, Any] = {
            **dict(self.labelled.items()),
            "errors": self.errors,
            "nll": self.nll,
        }
        named |= {"teacher_agreement": self.agreement, "teacher_kl": self.kl}
        return {name: metric for name, metric in named.items() if metric.update_called}

    def compute(self) -> dict[str, Tensor]:
        """The values, over all processes."""
        return {name: torch.as_tensor(metric.compute()) for name, metric in self.items().items()}

    def reset(self) -> None:
        """Start anew, in the inference mode that is on: sums made within it cannot be added to outside."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()
