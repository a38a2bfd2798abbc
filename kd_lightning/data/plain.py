"""Plain `(inputs, labels)` batches, as any DataLoader yields them."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.types import Batch

NO_INDEX = (
    "plain (inputs, labels) batches do not say which sample is which, so caches of a teacher and "
    "banks of samples cannot be used with them; derive the data from "
    "kd_lightning.data.TensorDataModule"
)


def as_batch(value: object) -> Batch:
    """A Batch as it is, and `(inputs, labels)` as a Batch.

    `index` counts the samples of the batch: which row of the data each is, is unknown.

    Args:
        value: a tuple or list of inputs `(B, ...)`, a tensor or a mapping of tensors, and integer
            labels `(B,)`.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, Batch):
        return value
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    labels = value[1] if isinstance(value, tuple | list) and is_pair else None
    if not isinstance(value, tuple | list) or not isinstance(labels, Tensor):
        raise UserError(
            f"a batch must be (inputs, labels) or a kd_lightning.Batch, got {_kind_of(value)}"
            "; return one of these from the DataLoader's collate_fn"
        )
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            "labels must be one integer class per sample, got "
            f"{labels.dtype} of shape {list(labels.shape)}; for other tasks derive the data from "
            "kd_lightning.data.TensorDataModule"
        )
    return Batch(value[0], labels.long(), torch.arange(len(labels)))


def _kind_of(value: object) -> str:
    """The type of a value, and of how many parts it is."""
    name = type(value).__name__
    if isinstance(value, tuple | list):
        return f"{name} of {len(value)}"
    return name


class PlainData(DataModule):
    """Describes loaders of plain batches to a module. It serves no samples itself.

    Args:
        spec: of the data.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._spec = spec

    @property
    def spec(self) -> Spec:
        """The spec that the user gave."""
        return self._spec

    def source(self, stage: str) -> Source:
        """Refuse: without rows there is nothing to read by row."""
        raise UserError(NO_INDEX)

    def smallest_batch(self) -> int:
        """Two, as a guess: the loaders are the user's own."""
        # Unknown; taken for large enough.
        return 2

    def fingerprint(self) -> dict[str, object]:
        """Refuse: data without rows cannot be identified."""
        raise UserError(NO_INDEX)
