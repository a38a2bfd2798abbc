"""Compares what an exported network predicts with what its checkpoint predicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.formats import Predictor
from kd_lightning.export.student import TrainedStudent

BATCH_SIZES = (1, 2, 7, 64)
"""Sizes of the batches that are compared; a graph may have been traced for one size only."""

MOST_SAMPLES = 512
"""Test samples that are compared, at most."""

MOST_VALUES = 2**28
"""Probabilities that are compared, at most; a language model returns millions per sample."""

MOST_VALUES_AT_ONCE = 2**25
"""Probabilities of a batch, at most; a larger batch of one sample is still compared."""


@dataclass(frozen=True)
class Comparison:
    """How far an exported network is from its checkpoint.

    Attributes:
        samples: test samples that were compared, at each batch size.
        batch_sizes: the sizes of the batches.
        largest_difference: of any probability.
        tolerance: the largest difference that is accepted.
    """

    samples: int
    batch_sizes: tuple[int, ...]
    largest_difference: float
    tolerance: float


def compare(
    student: TrainedStudent,
    predict: Predictor,
    tolerance: float,
) -> Comparison:
    """Predict real test samples with the export and with the checkpoint.

    Args:
        student: the checkpoint's network.
        predict: the exported network.
        tolerance: the largest difference of a probability that is accepted.

    Raises:
        UserError: if the predictions differ by more, or have another shape.
    """
    first = student.reference(torch.arange(1))
    available = min(MOST_SAMPLES, len(student.datamodule.source("test")))
    available = min(available, max(1, MOST_VALUES // first.numel()))
    largest_batch = min(available, max(1, MOST_VALUES_AT_ONCE // first.numel()))
    sizes = tuple(size for size in BATCH_SIZES if size <= largest_batch)
    largest = 0.0
    for size in sizes:
        # One batch of the small sizes shows what there is to see; they are slow.
        batches = available // size if size == max(sizes) else 1
        for number in range(batches):
            rows = torch.arange(number * size, (number + 1) * size)
            expected = student.reference(rows)
            predicted = _predicted(predict, student.raw_inputs("test", rows))
            difference = _difference(expected, predicted, size)
            largest = max(largest, difference)
            # NaN fails every comparison, so the test is for what is accepted.
            if not difference <= tolerance:
                raise UserError(
                    f"the exported network differs from the checkpoint by {difference:.2e} in a "
                    f"probability, with batches of {size}; at most {tolerance:.0e} is accepted, "
                    "so nothing was written"
                )
    return Comparison(available, sizes, largest, tolerance)


def _predicted(predict: Predictor, raw: tuple[Tensor, ...]) -> Tensor:
    """The prediction of the export; other libraries report failures in many ways.

    Raises:
        UserError: if the exported network cannot read the batch.
    """
    try:
        return predict(raw)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the exported network fails on a batch of {len(raw[0])} ({reason}); "
            "nothing was written"
        ) from error


def _difference(expected: Tensor, predicted: Tensor, size: int) -> float:
    if expected.shape != predicted.shape:
        raise UserError(
            f"the exported network returns {list(predicted.shape)} for a batch of {size}, the "
            f"checkpoint {list(expected.shape)}; nothing was written"
        )
    difference = (expected.double() - predicted.double()).abs().max()
    return float(difference)
