"""Batches whose gradients add up to one optimizer step, each with the number of terms of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from kd_lightning.types import Batch, Window, weight_of


def in_windows(batches: Iterator[Batch], size: int, first: int) -> Iterator[Batch]:
    """The same batches, each with the terms of its window.

    A mean over batches of unequal size is not the mean over their terms: a batch with few tokens
    would weigh as much as one with many. An Objective weights each batch by its share of the
    window, so that the accumulated gradient is that of one large batch.

    Args:
        batches: from the batch `first` of the epoch on.
        size: batches per optimizer step; the last window of an epoch may be smaller.
        first: number of the first batch in its epoch. A resumed run starts at a window.
    """
    until_next = size - first % size
    while window := list(islice(batches, until_next)):
        until_next = size
        terms = _terms_of(window, size)
        for batch in window:
            yield replace(batch, window=terms)


def _terms_of(window: list[Batch], divisor: int) -> Window:
    rows = 0
    labelled = 0
    samples = 0
    for batch in window:
        rows += int(weight_of("rows", batch))
        labelled += int(weight_of("labelled", batch))
        samples += int(weight_of("samples", batch))
    return Window(divisor, len(window), rows, labelled, samples)
