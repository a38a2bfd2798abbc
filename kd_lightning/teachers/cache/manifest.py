"""The manifest of a teacher cache: what the cache holds, and which files it is stored in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError

VERSION = 2
"""Version 2 stores top-k caches in another form. Version 1 is still read, except for those."""
MANIFEST_NAME = "manifest.json"

Array: TypeAlias = NDArray[Any]
Json: TypeAlias = "Mapping[str, Json] | list[Json] | str | int | float | bool | None"


class ShardEntry(TypedDict):
    """One shard as the manifest lists it: its file name, row count, size in bytes and checksum."""

    file: str
    rows: int
    bytes: int
    sha256: str


class TableEntry(TypedDict):
    """One table as the manifest lists it: the file of its row numbers, and its shards."""

    rows: str
    shard_rows: int
    shards: list[ShardEntry]


class ColumnEntry(TypedDict):
    """One column as the manifest lists it: numpy's name of the dtype, and the shape per sample."""

    dtype: str
    shape: list[int]


class ManifestContent(TypedDict):
    """The content of `manifest.json`."""

    version: int
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    columns: dict[str, ColumnEntry]
    tables: dict[str, TableEntry]


@dataclass
class Column:
    """One stored quantity: logits, members, indices, ...

    Attributes:
        dtype: numpy's name of the dtype.
        shape: shape of the quantity for one sample.
    """

    dtype: str
    shape: tuple[int, ...]


class RowPositions(NamedTuple):
    """Where each source row is stored in a table.

    Attributes:
        position: int32 `(rows,)`, the position of each source row; -1 for rows not stored.
        num_rows: number of stored rows.
    """

    position: Tensor
    num_rows: int


def record_dtype(columns: dict[str, Column]) -> np.dtype[Any]:
    """The dtype of one stored sample: its columns side by side, so that one read fetches all."""
    return np.dtype([(name, column.dtype, column.shape) for name, column in columns.items()])


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears under its name only once all data is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Manifest:
    """`manifest.json`: the cache's fingerprint and columns, and the shards of each table.

    Args:
        folder: folder of the cache.
        content: parsed content of the file.
    """

    def __init__(self, folder: Path, content: ManifestContent) -> None:
        self.folder = folder
        self.content = content
        # Keyed by the file of row numbers, because all views of the same rows share one file.
        self._positions: dict[str, RowPositions] = {}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the cache in `folder`.

        Raises:
            UserError: if the manifest is missing, damaged, or of another version.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"{folder} holds no teacher cache; create one with: kd cache ... --output {folder}"
            )
        try:
            content = json.loads(path.read_text())
            version = content["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged; delete the folder and create the cache again"
            ) from error
        if version not in (1, VERSION):
            raise UserError(
                f"the teacher cache {folder} has version {version}, but this kd_lightning reads "
                f"version {VERSION}; create the cache again"
            )
        top_k = content["settings"].get("top_k")
        if version == 1 and top_k is not None:
            raise UserError(
                f"the teacher cache {folder} stores the {top_k} largest logits in the form of "
                "version 0.1, which gives wrong targets; delete the folder and run: kd cache ... "
                f"--output {folder} --top-k {top_k} --dtype {content['settings'].get('dtype')}"
            )
        return cls(folder, content)

    def write(self) -> None:
        """Write the manifest to its folder."""
        text = json.dumps(self.content, indent=1) + "\n"
        write_atomically(self.folder / MANIFEST_NAME, text.encode())

    @property
    def columns(self) -> dict[str, Column]:
        """The stored columns by name."""
        columns = {}
        for name, entry in self.content["columns"].items():
            columns[name] = Column(entry["dtype"], tuple(entry["shape"]))
        return columns

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        total = 0
        for table in self.content["tables"].values():
            total += sum(int(shard["bytes"]) for shard in table["shards"])
        return total

    def rows(self, table: str) -> Array:
        """Source rows of a table, int64 `(n,)`, in the order in which they are stored.

        Raises:
            UserError: if the file of row numbers is missing or damaged.
        """
        path = self.folder / self.content["tables"][table]["rows"]
        try:
            rows: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} is missing or damaged; delete the folder and create the cache again"
            ) from error
        return rows

    def positions(self, table: str) -> RowPositions:
        """The position of each source row in a table. Views of the same rows share one tensor."""
        file = self.content["tables"][table]["rows"]
        if file not in self._positions:
            rows = self.rows(table)
            size = int(rows.max()) + 1 if len(rows) else 0
            position = torch.full((size,), -1, dtype=torch.int32)
            position[torch.from_numpy(rows)] = torch.arange(len(rows), dtype=torch.int32)
            self._positions[file] = RowPositions(position, len(rows))
        return self._positions[file]


def describe_difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe the first difference between a stored and a current mapping.

    Args:
        stored: as read from a manifest.
        current: as this run has it; tuples count as lists, because JSON stores them as lists.

    Returns:
        One clause such as `data.seed is 0 in the cache and 1 in this run`; empty if both are equal.
    """
    return _first_difference(stored, json.loads(json.dumps(current)), "")


def _first_difference(stored: Json, current: Json, path: str) -> str:
    if not isinstance(stored, Mapping) or not isinstance(current, Mapping):
        if stored == current:
            return ""
        return f"{path} is {stored} in the cache and {current} in this run"
    # A dict keeps its keys in order and drops repetitions.
    for key in dict.fromkeys([*stored, *current]):
        difference = _first_difference(
            stored.get(key), current.get(key), f"{path}.{key}".lstrip(".")
        )
        if difference:
            return difference
    return ""
