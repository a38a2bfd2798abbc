"""One label per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.metrics import ClassificationMetrics
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Mistake, Task
from kd_lightning.tasks.columns import Column, as_texts, distinct, positions_among
from kd_lightning.types import UNLABELLED, Batch, Output


class Classification(Task):
    """Predict one of K classes for each sample.

    Args:
        per_class: also report balanced accuracy, the mean F1, and recall and F1 of each class.
        top_k: also report the share of samples whose label is among the k largest logits.
    """

    name: ClassVar[str] = "classification"
    monitor: ClassVar[str] = "accuracy"
    mode: ClassVar[Literal["max", "min"]] = "max"
    count: ClassVar[str] = "errors"

    def __init__(self, per_class: bool = False, top_k: int | None = None) -> None:
        if top_k is not None and top_k < 2:
            raise UserError(f"Classification: top_k must be at least 2, got {top_k}")
        self.per_class = per_class
        self.top_k = top_k

    def metrics(self, spec: Spec) -> ClassificationMetrics:
        """Accuracy, errors and NLL, and those that the options ask for.

        Raises:
            UserError: if `top_k` is not less than the number of classes.
        """
        if self.top_k is not None and self.top_k >= spec.num_classes:
            raise UserError(
                f"Classification: top_k={self.top_k} needs more classes than the "
                f"{spec.num_classes} of {spec.data}"
            )
        if not self.per_class:
            return ClassificationMetrics(spec.num_classes, None, self.top_k)
        # Data without names of classes is reported by number.
        numbers = [str(number) for number in range(spec.num_classes)]
        classes = spec.classes or numbers
        return ClassificationMetrics(spec.num_classes, classes, self.top_k)

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """The logits `(B, K)` themselves: there is one position per sample."""
        # The shape is checked once, before training, and not in every step.
        return logits

    def target_names(self, columns: Mapping[str, Column]) -> tuple[str, ...]:
        """The different values of the only target column, in numerical or alphabetical order."""
        if len(columns) != 1:
            raise UserError(
                f"classification needs one target column, got {', '.join(columns)}; for several "
                "columns of 0 and 1 set data.task=kd_lightning.tasks.MultilabelClassification"
            )
        (name,) = columns
        classes = distinct(as_texts(columns[name]))
        if len(classes) < 2:
            raise UserError(
                f"column {name!r} has {len(classes)} classes; classification needs at least two"
            )
        return classes

    def encode_target(
        self, columns: Mapping[str, Column], names: tuple[str, ...]
    ) -> Tensor:
        """The class of each row, int64 `(N,)`; `UNLABELLED` if the value is missing.

        Raises:
            UserError: if a class is not among `names`.
        """
        (name,) = columns
        labels = as_texts(columns[name])
        classes = positions_among(labels, names)
        labelled = labels != ""
        unknown = labelled & (classes < 0)
        if unknown.any():
            unknown_labels = labels[unknown]
            example = str(unknown_labels[0])
            raise UserError(
                f"column {name!r} has a class that the training file lacks in "
                f"{len(unknown_labels)} rows, such as {example!r}; the classes are "
                f"{', '.join(names)}"
            )
        # An empty text is a missing label, not an unknown class.
        classes[~labelled] = UNLABELLED
        return torch.from_numpy(classes)

    def strata(self, target: Tensor) -> Tensor:
        """The classes `(N,)`; samples without a label are a stratum of their own."""
        extra_stratum = target.max() + 1
        return torch.where(target == UNLABELLED, extra_stratum, target)

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The logits `(B, K)`, the index `(B,)` and the target `(B,)`."""
        return {"logits": output.logits, "index": batch.index, "target": batch.target}

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """1 for a wrong sample, 0 for a right one, NaN without a label: float64 `(N,)`."""
        target = stored["target"]
        predicted = stored["logits"].argmax(-1)
        wrong = predicted != target
        return torch.where(target == UNLABELLED, torch.nan, wrong.double())

    def mistakes(
        self,
        stored: dict[str, Tensor],
        spec: Spec,
        most: int,
    ) -> Sequence[Mistake]:
        """The wrong predictions of highest confidence, from `test_outputs` of shape `(N, K)`."""
        # A sample without a label cannot be wrong.
        labelled = stored["target"] >= 0
        target = stored["target"][labelled]
        index = stored["index"][labelled]
        probs = stored["logits"][labelled].float().softmax(-1)
        confidence, guess = probs.max(-1)
        wrong = torch.nonzero(guess != target).flatten()
        by_confidence = confidence[wrong].argsort(descending=True)
        most_confident = wrong[by_confidence][:most]
        mistakes = []
        for at in most_confident.tolist():
            guessed = spec.classes[int(guess[at])]
            right = spec.classes[int(target[at])]
            caption = f"{guessed} ({confidence[at]:.2f}), is {right}"
            mistakes.append(Mistake(int(index[at]), caption))
        return mistakes

    def confusion(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Labels and predicted classes of the labelled samples, each `(N,)`."""
        target = stored["target"]
        labelled = target >= 0
        predicted = stored["logits"][labelled].argmax(-1)
        return target[labelled], predicted
