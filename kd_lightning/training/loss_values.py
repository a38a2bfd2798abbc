"""The values of losses for one batch, from all rows at once or from a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.row_chunks import (
    ChunkedOutput,
    rows_of_batch,
    rows_of_output,
    spans,
)
from kd_lightning.types import Batch, MeanOver, Output, count_labelled

Teachers = Output | tuple[Output, ...] | None
"""What the losses learn from: one teacher's output, those of several teachers, or nothing."""


def loss_values(
    losses: Sequence[DistillLoss], student: Output, teacher: Teachers, batch: Batch
) -> list[Tensor]:
    """Each loss of a batch, unweighted.

    Args:
        losses: for a `ChunkedOutput`, those with `row_wise` alone.
        student: with logits `(N, K)`.
        teacher: with logits `(N, K)`.
        batch: of both.
    """
    if isinstance(student, ChunkedOutput) and batch.num_rows > 0:
        return _values_in_chunks(losses, student, teacher, batch)
    return [value_of(loss, student, teacher, batch) for loss in losses]


def check_row_wise(row_chunk: int, losses: Mapping[str, DistillLoss]) -> None:
    """Refuse losses that need the logits of all rows at once.

    Args:
        row_chunk: rows whose logits are in memory together.
        losses: by name.

    Raises:
        UserError: one line, with what to change.
    """
    if row_chunk < 1:
        raise UserError(f"model.row_chunk must be at least 1, got {row_chunk}")
    for name, loss in losses.items():
        reads_layers = bool(loss.student_roles or loss.teacher_roles)
        if reads_layers or not loss.row_wise:
            raise UserError(
                f"model.row_chunk: the loss {name!r} ({type(loss).__name__}) is not a mean over "
                "rows of logits alone; leave out row_chunk, or use losses such as KD and "
                "CrossEntropy"
            )


def value_of(
    loss: DistillLoss, student: Output, teacher: Teachers, batch: Batch
) -> Tensor:
    """A loss, or its mean over several teachers; 0 if there is no position to average over."""
    if batch.num_rows == 0 and loss.mean_over in ("rows", "labelled"):
        # All pixels may be void and all tokens padding. The mean over no rows would be NaN.
        return student.logits.sum() * 0.0
    if not isinstance(teacher, tuple):
        value: Tensor = loss(student, teacher, batch)
        return value
    if not loss.uses_teacher:
        alone: Tensor = loss(student, None, batch)
        return alone
    values = [loss(student, each, batch) for each in teacher]
    return torch.stack(values).mean()


def _values_in_chunks(
    losses: Sequence[DistillLoss],
    student: ChunkedOutput,
    teacher: Teachers,
    batch: Batch,
) -> list[Tensor]:
    """The same from the logits of a few rows at a time.

    The graph holds the states alone; the backward pass computes the logits of each chunk again.
    """
    totals = [_terms_of(loss.mean_over, batch) for loss in losses]

    def values_of_rows(states: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Each loss of some rows, as its part of the mean over all rows."""
        own = Output(student.head(states))
        target = _rows_of_teachers(teacher, start, stop)
        part = rows_of_batch(batch, start, stop)
        shares = []
        for loss, total in zip(losses, totals, strict=True):
            value = value_of(loss, own, target, part)
            shares.append(value * _terms_of(loss.mean_over, part) / total)
        return tuple(shares)

    sums: list[Tensor] = []
    for start, stop in spans(batch.num_rows, student.row_chunk):
        # Nothing here draws random numbers, whose state would be saved otherwise.
        shares = checkpoint(
            values_of_rows,
            student.states[start:stop],
            start,
            stop,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        if not sums:
            sums = list(shares)
        else:
            sums = [total + share for total, share in zip(sums, shares, strict=True)]
    return sums


def _terms_of(mean_over: MeanOver, batch: Batch) -> int | Tensor:
    """The number of terms of a mean over rows or labelled rows, at least 1."""
    if mean_over == "labelled":
        # A placeholder has labels, too: its weight among the processes is 0, but it must be finite.
        return count_labelled(batch.labels, batch.partner_labels).clamp(min=1)
    return batch.num_rows


def _rows_of_teachers(teacher: Teachers, start: int, stop: int) -> Teachers:
    """Some rows of what the losses learn from."""
    if teacher is None:
        return None
    # A frozen head must not record a graph for its logits.
    with torch.no_grad():
        if isinstance(teacher, tuple):
            return tuple(rows_of_output(each, start, stop) for each in teacher)
        return rows_of_output(teacher, start, stop)
