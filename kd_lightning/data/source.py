"""The data contract: a source returns the batch of any rows under any augmentation draw."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from kd_lightning.types import Batch


class Source(Protocol):
    """Samples of one stage, fetched one batch at a time.

    Attributes:
        rows: int64 `(n,)`, the rows of the source split that take part; position i of this source
            is row `rows[i]`.
        target: `(N, *S)`, of the whole source split.
        split: the name of the source split.
        sample_bytes: bytes of one sample's inputs.
    """

    @property
    def rows(self) -> Tensor: ...

    @property
    def target(self) -> Tensor: ...

    @property
    def split(self) -> str: ...

    @property
    def sample_bytes(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Return the samples at some positions, under one draw of the augmentation.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: which draw; `CLEAN` for none.
        """
        ...

    def lengths(self, view: int) -> Tensor | None:
        """The length of each sample, int64 `(n,)`; `None` if all samples have the same shape."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch of training; most sources serve the same rows in all of them."""

    def resident_bytes(self) -> int:
        """Bytes that `to` would copy to a device."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same source with its samples resident on `device`."""
        ...
