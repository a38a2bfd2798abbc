"""Logits of large vocabularies, computed for a few rows at a time.

The logits of a language model are much larger than everything else in a step: 2,048 positions and
49,152 tokens in single precision are 400 MB, and a loss holds several tensors of this size. A
`ChunkedOutput` holds the states from which an output layer computes them instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from kd_lightning.types import Batch, EnsembleOutput, Output, TensorMap

Head = Callable[[Tensor], Tensor]
"""From states `(n, H)` to logits `(n, K)`, each row by itself."""


@runtime_checkable
class SplitNetwork(Protocol):
    """A network that can return its last states, from which a head computes the logits.

    Its `forward` takes `states_only=True` and then returns the states, `(B, *S, H)`.
    """

    def head(self, states: Tensor) -> Tensor:
        """Logits `(..., K)` of states `(..., H)`."""

    def check_head(self) -> None:
        """Check that the head of the states gives the network's own logits.

        Raises:
            UserError: if it does not.
        """


class ChunkedOutput(Output):
    """The states and the head that give a network's logits.

    The losses compute the logits of `row_chunk` rows at a time, and again in the backward pass. The
    attribute `logits` computes all of them, each time that it is read.

    Attributes:
        states: `(N, H)`, one row per predicted position.
        head: from states to logits.
        row_chunk: rows whose logits are in memory together.
    """

    __slots__ = ("head", "row_chunk", "states")

    def __init__(
        self,
        states: Tensor,
        head: Head,
        row_chunk: int,
        features: dict[str, Tensor] | None = None,
    ) -> None:
        self.states = states
        self.head = head
        self.row_chunk = row_chunk
        self.features = features or {}

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """The logits of all rows, `(N, K)`."""
        return self.head(self.states)

    def map(self, change: TensorMap) -> Self:
        """The same output with `change` applied to its logits, when they are computed."""
        head = self.head
        return type(self)(
            self.states,
            lambda states: change(head(states)),
            self.row_chunk,
            self._map_features(change),
        )


class RowPart(NamedTuple):
    """Some rows of a batch and of the outputs for it.

    Attributes:
        student: without features.
        teacher: without features; `None` if there is none.
        batch: the labels of the rows. It has no inputs, and each row counts as a sample.
    """

    student: Output
    teacher: Output | None
    batch: Batch


def row_parts(
    student: Output, teacher: Output | None, batch: Batch, row_chunk: int | None
) -> Iterator[RowPart]:
    """Split outputs into parts of at most `row_chunk` rows.

    Args:
        student: with N rows.
        teacher: with N rows; `None` if there is none.
        batch: of both.
        row_chunk: `None`: everything is one part, as it is.
    """
    if row_chunk is None:
        yield RowPart(student, teacher, batch)
        return
    for start, stop in spans(batch.num_rows, row_chunk):
        yield RowPart(
            rows_of_output(student, start, stop),
            None if teacher is None else rows_of_output(teacher, start, stop),
            rows_of_batch(batch, start, stop),
        )


def spans(rows: int, row_chunk: int) -> list[tuple[int, int]]:
    """The first row of each chunk, and the row after its last.

    Args:
        rows: N.
        row_chunk: rows of a chunk; the last one may have fewer.
    """
    starts = range(0, rows, row_chunk)
    return [(start, min(start + row_chunk, rows)) for start in starts]


def rows_of_output(output: Output, start: int, stop: int) -> Output:
    """Rows `start` to `stop` of an output, without its features.

    Args:
        output: of any kind; of a `ChunkedOutput`, the logits of these rows are computed.
        start: first row.
        stop: the row after the last.
    """
    if isinstance(output, ChunkedOutput):
        return Output(output.head(output.states[start:stop]))
    part = output.map(lambda tensor: tensor[start:stop])
    # Features and the weights of an ensemble's members have no rows.
    part.features = {}
    if isinstance(output, EnsembleOutput) and isinstance(part, EnsembleOutput):
        part.weights = output.weights
    return part


def rows_of_batch(batch: Batch, start: int, stop: int) -> Batch:
    """The labels of rows `start` to `stop`, as a batch with one sample per row.

    Args:
        batch: of N rows.
        start: first row.
        stop: the row after the last.
    """
    labels = batch.labels[start:stop]
    partner = batch.partner_labels
    share = batch.row_share
    return Batch(
        inputs={},
        target=labels,
        index=torch.arange(start, stop, device=labels.device),
        split=batch.split,
        placeholder=batch.placeholder,
        partner=None if partner is None else partner[start:stop],
        share=None if share is None else share[start:stop],
    )


def first_rows(output: Output) -> Output:
    """The logits of the first chunk of a `ChunkedOutput`; any other output as it is.

    The shape of a row shows whether a network fits the data.
    """
    if isinstance(output, ChunkedOutput):
        part = rows_of_output(output, 0, output.row_chunk)
        part.features = output.features
        return part
    return output
