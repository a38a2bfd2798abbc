"""Samples without labels that a user brings: files in, raw inputs of a network out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from torch import Tensor

from kd_lightning.data.images.tree import read_regular
from kd_lightning.errors import UserError
from kd_lightning.types import Inputs
from kd_lightning.values import Values

Content: TypeAlias = bytes | tuple[str, ...] | Mapping[str, str] | tuple[Tensor, ...]
"""A file, one text or two, a row by its columns, or tensors without a batch axis."""


@dataclass(frozen=True)
class NewSample:
    """One sample to predict.

    Attributes:
        name: identifies it to a person, such as its file.
        content: what was read; `None` if it could not be read.
        problem: why it could not be read.
    """

    name: str
    content: Content | None
    problem: UserError | None = None


class InputReader(ABC):
    """Reads new samples exactly as a datamodule reads those that it trains on.

    Attributes:
        kind: what the samples are, such as "images", for messages and for exports.
        suffixes: how the names of the files end that are read from a folder.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def samples(self, path: Path) -> Iterator[NewSample]:
        """The samples of a file, one after the other.

        Args:
            path: of an existing file.

        Raises:
            UserError: if the whole file cannot be read.
        """

    @abstractmethod
    def encode(self, contents: Sequence[Content]) -> Inputs:
        """Raw inputs as `DataModule.raw_inputs` returns them, `(B, ...)`.

        Args:
            contents: of B samples.

        Raises:
            UserError: if a sample does not fit the network.
        """

    def describe(self) -> Values | None:
        """Plain values that build this reader again in an export; `None` if none can."""
        return None


def read_bytes(path: Path) -> NewSample:
    """The whole content of a file as a sample; a failure is its problem."""
    try:
        return NewSample(str(path), read_regular(path))
    except UserError as error:
        return NewSample(str(path), None, error)
