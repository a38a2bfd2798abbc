"""Rows of a table in memory, served one batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_lightning.data.source import Source
from kd_lightning.types import Batch


@dataclass
class TableSource(Source):
    """Some rows of a source split.

    Attributes:
        inputs: `(N, ...)`, the whole source split; subsets share it.
        target: `(N, *S)`, of the whole source split.
        rows: int64 `(n,)`, the rows of the source split that take part.
        split: the name of the source split.
    """

    inputs: Tensor
    target: Tensor
    rows: Tensor
    split: str

    @property
    def sample_bytes(self) -> int:
        """Bytes of the inputs of one sample."""
        return self.inputs.element_size() * math.prod(self.inputs.shape[1:])

    @property
    def resident_bytes(self) -> int:
        """Bytes of all inputs, targets and row numbers."""
        return self.inputs.nbytes + self.target.nbytes + self.rows.nbytes

    def to(self, device: torch.device) -> TableSource:
        """A copy on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            target=self.target.to(device),
            rows=self.rows.to(device),
        )

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Inputs `(B, ...)` and targets `(B, *S)` of rows `(B,)`; every view is the same."""
        index = self.rows.index_select(0, rows.to(self.rows.device))
        return Batch(
            inputs=self.inputs.index_select(0, index),
            target=self.target.index_select(0, index),
            index=index,
            view=view,
            split=self.split,
        )
