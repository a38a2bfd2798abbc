"""Several labels per sample: each pair of a sample and a class is a binary decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from kd_lightning.errors import UserError
from kd_lightning.metrics import (
    TaskMetrics,
    TeacherComparison,
    labelled_rows,
    mean_metric,
    sum_metric,
)
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task, values_of_positions
from kd_lightning.tasks.columns import Column, as_texts
from kd_lightning.types import UNLABELLED, Batch, Output, full

LABEL_VALUES = {"": UNLABELLED, "0": 0, "1": 1, "false": 0, "true": 1}
"""The values of a label's column in a table, in lower case."""


class MultilabelMetrics(TaskMetrics):
    """Mean average precision, macro F1, binary errors and NLL (nats per sample and class).

    Args:
        num_classes: C, the number of labels that a sample may have.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mean_average_precision = MultilabelAveragePrecision(
            num_classes, ignore_index=UNLABELLED, validate_args=False
        )
        self.f1 = MultilabelF1Score(
            num_classes, ignore_index=UNLABELLED, validate_args=False
        )
        self.errors = sum_metric()
        self.nll = mean_metric()
        self.comparison = TeacherComparison()

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add the samples of a batch."""
        if teacher is not None:
            self.comparison.update(student, teacher)
        rows = full(student.logits)
        # Back from binary rows [0, z] to one score per sample and class.
        differences = rows[:, 1] - rows[:, 0]
        scores = differences.view(-1, self.num_classes)
        probs = scores.sigmoid()
        self.mean_average_precision.update(probs, batch.target)
        self.f1.update(probs, batch.target)
        rows, labels = labelled_rows(student, batch)
        if len(labels) > 0:
            wrong = rows.argmax(-1) != labels
            self.errors.update(wrong.float())
            nll = F.cross_entropy(rows, labels, reduction="none")
            self.nll.update(nll)

    def named(self) -> Mapping[str, Metric]:
        """The metrics by the names under which they are logged."""
        return {
            "map": self.mean_average_precision,
            "f1": self.f1,
            "errors": self.errors,
            "nll": self.nll,
            **self.comparison.named(),
        }


class MultilabelClassification(Task):
    """Predict for each sample which of C labels apply.

    The network returns one logit z per label, `(B, C)`. Each pair of a sample and a label is one
    binary row with the logits `[0, z]`, so that every loss on distributions works unchanged: KD
    compares Bernoulli distributions at a temperature, cross-entropy is binary cross-entropy.
    """

    name: ClassVar[str] = "multi-label classification"
    monitor: ClassVar[str] = "map"
    mode: ClassVar[Literal["max", "min"]] = "max"
    count: ClassVar[str] = "errors"

    def metrics(self, spec: Spec) -> MultilabelMetrics:
        """Fresh metrics of the spec's C labels."""
        return MultilabelMetrics(spec.num_classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each label, `(B, C)`."""
        return logits.sigmoid()

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """One binary row [0, z] for each pair of sample and label: `(B, C)` to `(B * C, 2)`."""
        # softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)].
        scores = values_of_positions(logits, batch)
        zeros = torch.zeros_like(scores)
        return torch.stack([zeros, scores], dim=-1)

    def row_width(self, spec: Spec) -> int:
        """Two: a label applies or does not."""
        return 2

    def blank_target(self, spec: Spec, samples: int) -> Tensor:
        """A target `(samples, C)` of which no label applies."""
        return torch.zeros(samples, spec.num_classes, dtype=torch.int64)

    def target_names(self, columns: Mapping[str, Column]) -> tuple[str, ...]:
        """The names of the target columns; each holds one label's zeros and ones."""
        return tuple(columns)

    def encode_target(
        self, columns: Mapping[str, Column], names: tuple[str, ...]
    ) -> Tensor:
        """Which labels apply to each row, int64 `(N, C)`; `UNLABELLED` if missing.

        Raises:
            UserError: if a value is neither 0 nor 1.
        """
        target = [_label_of_rows(name, columns[name]) for name in names]
        return torch.stack(target, dim=-1)

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The logits `(B, C)`, one per label, the index `(B,)` and the target `(B, C)`."""
        # Back from binary rows [0, z] to one score per sample and class.
        differences = output.logits[:, 1] - output.logits[:, 0]
        scores = differences.view(batch.target.shape)
        return {"logits": scores, "index": batch.index, "target": batch.target}

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """The number of wrong labels of each sample, float64 `(N,)`."""
        target = stored["target"]
        predicted = (stored["logits"] > 0).long()
        wrong = predicted != target
        wrong &= target != UNLABELLED
        return wrong.sum(-1).double()


def _label_of_rows(name: str, column: Column) -> Tensor:
    """Whether a label applies to each row, int64 `(N,)`; `UNLABELLED` if that is unknown."""
    texts = np.char.lower(as_texts(column))
    # Look up each different text once, not each row.
    values, inverse = np.unique(texts, return_inverse=True)
    codes: list[int] = []
    for value in values.tolist():
        if value not in LABEL_VALUES:
            raise UserError(
                f"column {name!r} must hold 0 or 1 in each row, got {value!r}"
            )
        codes.append(LABEL_VALUES[value])
    code_of_value = np.array(codes, dtype=np.int64)
    return torch.from_numpy(code_of_value[inverse])
