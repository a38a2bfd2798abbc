"""One label per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kd_lightning.metrics import ClassificationMetrics
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Mistake, Task
from kd_lightning.types import UNLABELLED, Batch, Output


class Classification(Task):
    """Predict one of K classes for each sample."""

    name: ClassVar[str] = "classification"
    monitor: ClassVar[str] = "accuracy"
    mode: ClassVar[Literal["max", "min"]] = "max"
    count: ClassVar[str] = "errors"

    def metrics(self, spec: Spec) -> ClassificationMetrics:
        return ClassificationMetrics(spec.num_classes)

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        # One position per sample: the output is checked once, before training.
        return logits

    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return {"logits": output.logits, "index": batch.index, "target": batch.target}

    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        target = stored["target"]
        wrong = (stored["logits"].argmax(-1) != target).double()
        return torch.where(target == UNLABELLED, torch.nan, wrong)

    def mistakes(self, stored: dict[str, Tensor], spec: Spec, most: int) -> Sequence[Mistake]:
        labelled = stored["target"] >= 0
        target = stored["target"][labelled]
        index = stored["index"][labelled]
        confidence, guess = stored["logits"][labelled].float().softmax(-1).max(-1)
        wrong = torch.nonzero(guess != target).flatten()
        most_confident = wrong[confidence[wrong].argsort(descending=True)][:most]
        mistakes = []
        for at in most_confident.tolist():
            guessed = spec.classes[int(guess[at])]
            right = spec.classes[int(target[at])]
            caption = f"{guessed} ({confidence[at]:.2f}), is {right}"
            mistakes.append(Mistake(int(index[at]), caption))
        return mistakes

    def confusion(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        labelled = stored["target"] >= 0
        return stored["target"][labelled], stored["logits"][labelled].argmax(-1)
