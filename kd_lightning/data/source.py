"""The data contract: a source returns the batch of any rows under any augmentation draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from kd_lightning.types import CLEAN, Batch, Inputs


class Source(ABC):
    """Samples of one stage, fetched one batch at a time.

    Attributes:
        rows: int64 `(n,)`, the rows of the source split that take part; position i of this source
            is row `rows[i]`.
        target: `(N, *S)`, of the whole source split.
        split: the name of the source split, "train" or "test".
    """

    rows: Tensor
    target: Tensor
    split: str

    def __len__(self) -> int:
        """The number of samples n."""
        return len(self.rows)

    @abstractmethod
    def batch(self, rows: Tensor, view: int) -> Batch:
        """Return the samples at some positions, under one draw of the augmentation.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: which draw; `CLEAN` for none.
        """

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's inputs; 0 if samples differ in size."""
        return 0

    def lengths(self, view: int = CLEAN) -> Tensor | None:
        """The length of each sample, int64 `(n,)`; `None` if all samples have the same shape."""
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch of training; most sources serve the same rows in all of them."""

    @property
    def resident_bytes(self) -> int | None:
        """Bytes that `to` copies to a device; `None` if the source cannot move."""
        return None

    def to(self, device: torch.device) -> Self:
        """The same source with its samples resident on `device`."""
        return self


def batch_of_views(source: Source, rows: Tensor, views: tuple[int, ...]) -> Batch:
    """Every sample under each of several augmentation draws, as one batch.

    The samples of the first view come first, then those of the second, and so on: row `v * B + i`
    shows sample `i` in view `views[v]`, so that `(V * B, K)` logits reshape to `(V, B, K)`.

    Args:
        source: the samples.
        rows: int64 `(B,)`, positions in the source.
        views: the draws.
    """
    # The usual case, without a copy.
    if len(views) == 1:
        return source.batch(rows, views[0])
    batches = [source.batch(rows, view) for view in views]
    return join_batches(batches, views)


def join_batches(batches: list[Batch], views: tuple[int, ...]) -> Batch:
    """Concatenate batches of the same split; `view` becomes a tensor.

    Args:
        batches: with tensors of equal shapes; their rows follow each other.
        views: the view of each batch.
    """
    inputs: list[Inputs] = []
    targets: list[Tensor] = []
    indices: list[Tensor] = []
    view_of_rows: list[Tensor] = []
    # A batch without an optional field adds nothing to its list.
    teacher_inputs: list[Inputs] = []
    partners: list[Tensor] = []
    shares: list[Tensor] = []
    for batch, view in zip(batches, views, strict=True):
        inputs.append(batch.inputs)
        targets.append(batch.target)
        indices.append(batch.index)
        view_of_rows.append(torch.full((len(batch),), view))
        if batch.teacher_inputs is not None:
            teacher_inputs.append(batch.teacher_inputs)
        if batch.partner is not None:
            partners.append(batch.partner)
        if batch.share is not None:
            shares.append(batch.share)
    return Batch(
        inputs=_join_inputs(inputs),
        target=torch.cat(targets),
        index=torch.cat(indices),
        view=torch.cat(view_of_rows),
        split=batches[0].split,
        teacher_inputs=_join_inputs(teacher_inputs) if teacher_inputs else None,
        partner=torch.cat(partners) if partners else None,
        share=torch.cat(shares) if shares else None,
        positions=_join_positions(batches),
    )


def _join_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs of the same kind: tensors, or mappings with the same names."""
    first = inputs[0]
    if isinstance(first, Tensor):
        tensors = [item for item in inputs if isinstance(item, Tensor)]
        return torch.cat(tensors)
    joined = {}
    for name in first:
        parts = [item[name] for item in inputs if isinstance(item, Mapping)]
        joined[name] = torch.cat(parts)
    return joined


def _join_positions(batches: list[Batch]) -> Tensor | None:
    # `None` stands for all positions.
    if all(batch.positions is None for batch in batches):
        return None
    shifted = []
    offset = 0
    for batch in batches:
        positions = batch.positions
        if positions is None:
            positions = torch.arange(batch.target.numel())
        # Positions count within their own batch, and the joined batch is longer.
        shifted.append(positions + offset)
        offset += batch.target.numel()
    return torch.cat(shifted)
