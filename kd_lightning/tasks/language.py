"""One token per position of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError

from kd_lightning.metrics import (
    TaskMetrics,
    TeacherComparison,
    labelled_rows,
    mean_metric,
    sum_metric,
)
from kd_lightning.row_chunks import ChunkedOutput, row_parts
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import UNLABELLED, Batch, Output, full


class LanguageMetrics(TaskMetrics):
    """NLL in nats per token, perplexity, token accuracy, token errors and calibration error.

    With the bytes of each token also bits per byte, which models with other tokenizers can be
    compared by. Padding has no position and counts nowhere.

    Args:
        num_tokens: V, the size of the vocabulary.
        token_bytes: int64 `(V,)`, the bytes of UTF-8 that each token stands for.
    """

    def __init__(self, num_tokens: int, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        self.nll = mean_metric()
        self.accuracy = mean_metric()
        self.errors = sum_metric()
        self.calibration_error = MulticlassCalibrationError(
            num_tokens, n_bins=15, validate_args=False
        )
        self.bytes_per_token = mean_metric()
        self.comparison = TeacherComparison()
        # Known from the data, and so in no checkpoint.
        self.register_buffer("token_bytes", token_bytes, persistent=False)

    def update(self, student: Output, teacher: Output | None, batch: Batch) -> None:
        """Add the tokens of a batch."""
        if teacher is not None:
            self.comparison.update(student, teacher)
        logits, labels = labelled_rows(student, batch)
        if len(labels) == 0:
            return
        wrong = (logits.argmax(-1) != labels).float()
        # One value per token: the mean over all batches weights tokens equally.
        nll = F.cross_entropy(logits, labels, reduction="none")
        self.nll.update(nll)
        self.accuracy.update(1 - wrong)
        self.errors.update(wrong)
        self.calibration_error.update(logits.softmax(-1), labels)
        if isinstance(self.token_bytes, Tensor):
            self.bytes_per_token.update(self.token_bytes[labels].float())

    def named(self) -> Mapping[str, Metric]:
        """The metrics by the names under which they are logged."""
        return {
            "nll": self.nll,
            "accuracy": self.accuracy,
            "errors": self.errors,
            "calibration_error": self.calibration_error,
            **self.comparison.named(),
        }

    def names(self) -> list[str]:
        """The names of the values that `compute` can return."""
        names = [*super().names(), "perplexity"]
        if self.token_bytes is not None:
            names.append("bits_per_byte")
        return names

    def compute(self) -> dict[str, Tensor]:
        """All values by name, with the perplexity and the bits per byte."""
        values = super().compute()
        # Of the mean NLL: a mean of the batches' perplexities would be larger.
        if "nll" in values:
            values["perplexity"] = values["nll"].exp()
        if self.bytes_per_token.update_called:
            bits_per_token = values["nll"] / math.log(2)
            values["bits_per_byte"] = bits_per_token / self.bytes_per_token.compute()
        return values


class LanguageModelling(Task):
    """Predict the next token at each position.

    Logits are `(B, L, V)`. The data shifts the targets `(B, L)` by one token, and its `positions`
    leave out padding.

    Args:
        token_bytes: returns the bytes of UTF-8 that each token stands for, int64 `(V,)`; `None`:
            they are unknown.
    """

    name: ClassVar[str] = "language modelling"
    monitor: ClassVar[str] = "nll"
    mode: ClassVar[Literal["max", "min"]] = "min"
    count: ClassVar[str] = "errors"

    def __init__(self, token_bytes: Callable[[], Tensor] | None = None) -> None:
        self._token_bytes = token_bytes

    def metrics(self, spec: Spec) -> LanguageMetrics:
        """Fresh metrics."""
        # A function, because the data may know its vocabulary only when it is first read.
        token_bytes = self._token_bytes() if self._token_bytes is not None else None
        return LanguageMetrics(spec.num_classes, token_bytes)

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Per text: the number of labelled tokens, the wrong ones, and the summed NLL in nats."""
        labels = batch.labels
        labelled = labels != UNLABELLED
        nll, predicted = _nll_and_best(output, batch)
        wrong = (predicted != labels) & labelled
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


def _nll_and_best(output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """For each row the NLL of its label in nats, 0 without a label, and the likeliest token.

    Returns:
        Two tensors `(N,)`, floats and int64.
    """
    row_chunk = output.row_chunk if isinstance(output, ChunkedOutput) else None
    nll = []
    best = []
    for part in row_parts(output, None, batch, row_chunk):
        logits = full(part.student.logits)
        costs = F.cross_entropy(
            logits, part.batch.labels, ignore_index=UNLABELLED, reduction="none"
        )
        nll.append(costs)
        best.append(logits.argmax(-1))
    if not nll:
        nothing = batch.labels[:0]
        return nothing.float(), nothing
    return torch.cat(nll), torch.cat(best)


class MaskedLanguageModelling(LanguageModelling):
    """Predict the masked tokens of a text.

    Only masked tokens are positions. Their NLL is not that of the text, so there are no bits per
    byte.
    """

    name: ClassVar[str] = "masked language modelling"

    def __init__(self) -> None:
        super().__init__(token_bytes=None)


class SequenceToSequence(LanguageModelling):
    """Predict each token of a completion from its prompt and the tokens before it.

    Args:
        token_bytes: see LanguageModelling.
    """

    name: ClassVar[str] = "sequence-to-sequence modelling"
