"""One label per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from kd_lightning.metrics import (
    TaskMetrics,
    TeacherComparison,
    labelled_rows,
    mean_metric,
    sum_metric,
)
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import UNLABELLED, Batch, Output


class SegmentationMetrics(TaskMetrics):
    """Mean IoU over classes, pixel accuracy, pixel errors and NLL (nats per pixel).

    Void pixels have no position and count nowhere; unlabelled ones count only in the comparison
    with the teacher.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.miou = MulticlassJaccardIndex(
            num_classes, average="macro", validate_args=False
        )
        self.accuracy = MulticlassAccuracy(
            num_classes, average="micro", validate_args=False
        )
        self.errors = sum_metric()
        self.nll = mean_metric()
        self.comparison = TeacherComparison()

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add the pixels of a batch."""
        if teacher is not None:
            self.comparison.update(student, teacher)
        logits, labels = labelled_rows(student, batch)
        if len(labels) > 0:
            classes = logits.argmax(-1)
            self.miou.update(classes, labels)
            self.accuracy.update(classes, labels)
            wrong = classes != labels
            self.errors.update(wrong.float())
            # One value per pixel: the mean over all batches weights pixels equally.
            nll = F.cross_entropy(logits, labels, reduction="none")
            self.nll.update(nll)

    def named(self) -> Mapping[str, Metric]:
        """The metrics by the names under which they are logged."""
        return {
            "miou": self.miou,
            "accuracy": self.accuracy,
            "errors": self.errors,
            "nll": self.nll,
            **self.comparison.named(),
        }


class Segmentation(Task):
    """Predict one of K classes for each pixel. Logits are `(B, K, H, W)`, targets `(B, H, W)`."""

    name: ClassVar[str] = "segmentation"
    monitor: ClassVar[str] = "miou"
    mode: ClassVar[Literal["max", "min"]] = "max"
    count: ClassVar[str] = "errors"

    def metrics(self, spec: Spec) -> SegmentationMetrics:
        """Fresh metrics of the spec's K classes."""
        return SegmentationMetrics(spec.num_classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities of the classes of each pixel, `(B, K, H, W)`."""
        return logits.softmax(1)

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The predicted class of each pixel, and per sample the wrong and the labelled pixels."""
        classes = output.logits.argmax(-1)
        labels = batch.labels
        labelled = labels != UNLABELLED
        wrong = (classes != labels) & labelled
        # Pixels without a position count as neither wrong nor labelled.
        wrong_maps = _per_sample(wrong.long(), batch, fill=0)
        labelled_maps = _per_sample(labelled.long(), batch, fill=0)
        return {
            # 16 bits per pixel keep the file of a test small.
            "classes": _per_sample(classes.to(torch.int16), batch, fill=UNLABELLED),
            "wrong_pixels": wrong_maps.flatten(1).sum(1),
            "labelled_pixels": labelled_maps.flatten(1).sum(1),
            "index": batch.index,
        }

    def predictions(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The predicted class of each pixel, int16 `(B, H, W)`, and the index `(B,)`."""
        classes = output.logits.argmax(-1).to(torch.int16)
        maps = _per_sample(classes, batch, fill=UNLABELLED)
        return {"classes": maps, "index": batch.index}

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """The wrong pixels of each image, float64 `(N,)`; NaN if none has a label."""
        unknown = stored["labelled_pixels"] == 0
        wrong = stored["wrong_pixels"].double()
        return wrong.masked_fill(unknown, torch.nan)


def _per_sample(rows: Tensor, batch: Batch, fill: int) -> Tensor:
    """Put one value per predicted position back into the target's shape `(B, *S)`."""
    if batch.positions is None:
        return rows.view(batch.target.shape)
    values = rows.new_full((batch.target.numel(),), fill)
    values[batch.positions] = rows
    return values.view(batch.target.shape)
