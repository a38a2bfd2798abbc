"""One token per position of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from kd_lightning.metrics import (
    TaskMetrics,
    TeacherComparison,
    labelled_rows,
    mean_metric,
    sum_metric,
)
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import UNLABELLED, Batch, Output, full


class LanguageMetrics(TaskMetrics):
    """NLL in nats per token, perplexity, token accuracy and token errors.

    Padding has no position and counts nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nll = mean_metric()
        self.accuracy = mean_metric()
        self.errors = sum_metric()
        self.comparison = TeacherComparison()

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add the tokens of a batch."""
        if teacher is not None:
            self.comparison.update(student, teacher)
        logits, labels = labelled_rows(student, batch)
        if len(labels) > 0:
            wrong = (logits.argmax(-1) != labels).float()
            # One value per token: the mean over all batches weights tokens equally.
            nll = F.cross_entropy(logits, labels, reduction="none")
            self.nll.update(nll)
            self.accuracy.update(1 - wrong)
            self.errors.update(wrong)

    def named(self) -> Mapping[str, Metric]:
        """The metrics by the names under which they are logged."""
        return {
            "nll": self.nll,
            "accuracy": self.accuracy,
            "errors": self.errors,
            **self.comparison.named(),
        }

    def compute(self) -> dict[str, Tensor]:
        """All values by name, and the perplexity."""
        values = super().compute()
        # Of the mean NLL: a mean of the batches' perplexities would be larger.
        if "nll" in values:
            values["perplexity"] = values["nll"].exp()
        return values


class LanguageModelling(Task):
    """Predict the next token at each position.

    Logits are `(B, L, V)`. The data shifts the targets `(B, L)` by one token, and its `positions`
    leave out padding.
    """

    name: ClassVar[str] = "language modelling"
    monitor: ClassVar[str] = "nll"
    mode: ClassVar[Literal["max", "min"]] = "min"
    count: ClassVar[str] = "errors"

    def metrics(self, spec: Spec) -> LanguageMetrics:
        """Fresh metrics; they do not depend on the vocabulary."""
        return LanguageMetrics()

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Per text: the number of labelled tokens, the wrong ones, and the summed NLL in nats."""
        labels = batch.labels
        labelled = labels != UNLABELLED
        logits = full(output.logits)
        nll = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none")
        wrong = (logits.argmax(-1) != labels) & labelled
        sample = self._sample_of_rows(batch)
        # Sums of many tokens need double precision.
        zeros = torch.zeros(len(batch), dtype=torch.float64, device=labels.device)
        return {
            "nll": zeros.index_add(0, sample, nll.double()),
            "wrong_tokens": zeros.index_add(0, sample, wrong.double()),
            "labelled_tokens": zeros.index_add(0, sample, labelled.double()),
            "index": batch.index,
        }

    @staticmethod
    def _sample_of_rows(batch: Batch) -> Tensor:
        """The sample within the batch that each row belongs to, int64 `(N,)`."""
        length = batch.target.shape[1]
        positions = batch.positions
        if positions is None:
            target = batch.target
            positions = torch.arange(target.numel(), device=target.device)
        return positions // length

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """The wrong tokens of each text, float64 `(N,)`; NaN if none has a label."""
        unknown = stored["labelled_tokens"] == 0
        return stored["wrong_tokens"].masked_fill(unknown, torch.nan)
