"""The data contract: a source answers `batch(rows, view)` for any rows and any augmentation draw."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kd_lightning.types import Batch


class Source(Protocol):
    """Samples that are fetched a batch at a time."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, view: int) -> Batch:
        """The samples at `rows` (int64 `(B,)`, positions in this source), as the augmentation draw `view` shows them."""
        ...
