"""The manifest of a teacher cache: what the cache holds, and which files it is stored in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache import schema
from kd_lightning.teachers.cache.files import MANIFEST_NAME, write_atomically
from kd_lightning.teachers.cache.schema import Json, ManifestContent, SchemaError
from kd_lightning.values import Values
from kd_lightning.weights import sha256_of

VERSION = 2
"""Version 2 stores top-k caches in another form. Version 1 is still read, except for those."""

_MAX_MANIFEST_BYTES = 2**28
_MAX_ROWS = 10**8
"""Row numbers beyond this, and beyond 100 times the number of rows, count as damage."""

Array: TypeAlias = NDArray[Any]


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
    fields = []
    for name, column in columns.items():
        fields.append((name, column.dtype, column.shape))
    return np.dtype(fields)


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

        Args:
            folder: of the cache.

        Raises:
            UserError: if the manifest is missing, damaged, or of another version.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"{folder} holds no teacher cache; create one with: kd cache ... --output {folder}"
            )
        # The version first: another one may have another form.
        parsed = _parse(path)
        version = parsed.get("version")
        if isinstance(version, int) and version not in (1, VERSION):
            raise UserError(
                f"the teacher cache {folder} has version {version}, but this kd_lightning reads "
                f"version {VERSION}; create the cache again"
            )
        # The checksum is of all other entries.
        checksum = parsed.pop("sha256", None)
        try:
            content = schema.check(parsed)
        except SchemaError as error:
            raise damaged(path, str(error)) from error
        top_k = content["settings"].get("top_k")
        if version == 1 and top_k is not None:
            raise UserError(
                f"the teacher cache {folder} stores the {top_k} largest logits in the form of "
                "version 0.1, which gives wrong targets; delete the folder and run: kd cache ... "
                f"--output {folder} --top-k {top_k} --dtype {content['settings'].get('dtype')}"
            )
        if version != 1 and checksum != _checksum(content):
            raise damaged(path, "its content was altered after it was written")
        return cls(folder, content)

    def write(self) -> None:
        """Write the manifest to its folder, with a checksum of its content.

        Raises:
            UserError: if it cannot be written.
        """
        content = {**self.content, "sha256": _checksum(self.content)}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.folder / MANIFEST_NAME, text.encode())

    def damaged(self, problem: str) -> UserError:
        """The error for a manifest that contradicts what it describes."""
        return damaged(self.folder / MANIFEST_NAME, problem)

    @property
    def columns(self) -> dict[str, Column]:
        """The stored columns by name."""
        columns = {}
        for name, entry in self.content["columns"].items():
            shape = tuple(entry["shape"])
            columns[name] = Column(entry["dtype"], shape)
        return columns

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        total = 0
        for table in self.content["tables"].values():
            for shard in table["shards"]:
                total += int(shard["bytes"])
        return total

    def rows(self, table: str) -> Array:
        """Source rows of a table, int64 `(n,)`, in the order in which they are stored.

        Raises:
            UserError: if the file of row numbers is missing, damaged or altered.
        """
        entry = self.content["tables"][table]
        path = self.folder / entry["rows"]
        remedy = (
            "run the same kd cache command again to repair it, or delete the folder"
        )
        if not path.is_file():
            raise UserError(f"{path} is missing or damaged; {remedy}")
        # Caches of version 1 have no checksum of this file.
        if "rows_sha256" in entry and sha256_of(path) != entry["rows_sha256"]:
            raise UserError(f"{path} was altered after it was written; {remedy}")
        try:
            # Mapped, because a damaged header may claim any size.
            stored = np.load(path, allow_pickle=False, mmap_mode="r")
            rows: Array = np.array(stored)
        except Exception as error:
            # Numpy's reader of headers raises errors of many types.
            raise UserError(f"{path} is missing or damaged; {remedy}") from error
        if rows.ndim != 1 or rows.dtype != np.int64:
            raise UserError(f"{path} holds no list of row numbers; {remedy}")
        # Readers allocate a table of as many entries as the largest number.
        limit = max(_MAX_ROWS, 100 * len(rows))
        if len(rows) == 0:
            return rows
        lowest = int(rows.min())
        highest = int(rows.max())
        if lowest < 0 or highest >= limit:
            raise UserError(f"{path} holds numbers that are no row numbers; {remedy}")
        return rows

    def positions(self, table: str) -> RowPositions:
        """The position of each source row in a table. Views of the same rows share one tensor.

        Raises:
            UserError: if the file of row numbers is missing or damaged.
        """
        file = self.content["tables"][table]["rows"]
        if file not in self._positions:
            rows = self.rows(table)
            size = 0
            if len(rows):
                size = int(rows.max()) + 1
            position = torch.full((size,), -1, dtype=torch.int32)
            places = torch.arange(len(rows), dtype=torch.int32)
            position[torch.from_numpy(rows)] = places
            # A row that is listed twice has one position only, so that fewer are set.
            if int((position >= 0).sum()) != len(rows):
                raise UserError(
                    f"{self.folder / file} lists a row twice; delete the folder and create the "
                    "cache again"
                )
            self._positions[file] = RowPositions(position, len(rows))
        return self._positions[file]

    def teachers(self) -> list[dict[str, Json]]:
        """Where the teacher's weights came from; `path` and `sha256` of each are texts or null.

        Raises:
            UserError: if the manifest does not list them.
        """
        fingerprint = self.content["fingerprint"]
        sources = []
        try:
            for value in schema.sequence(fingerprint, "teacher", "fingerprint"):
                source = schema.mapping(value, "fingerprint.teacher")
                for key in ("path", "sha256"):
                    if not isinstance(source.get(key), str | None):
                        raise SchemaError(f"fingerprint.teacher.{key} is no text")
                sources.append(source)
        except SchemaError as error:
            raise self.damaged(str(error)) from error
        return sources

    def data(self) -> dict[str, Json]:
        """The fingerprint of the data.

        Raises:
            UserError: if the manifest does not have it.
        """
        try:
            stored = schema.item(self.content["fingerprint"], "data", "fingerprint")
            return schema.mapping(stored, "fingerprint.data")
        except SchemaError as error:
            raise self.damaged(str(error)) from error


def damaged(path: Path, problem: str) -> UserError:
    """The error for a damaged manifest."""
    return UserError(
        f"{path} is damaged: {problem}; delete the folder and create the cache again"
    )


def _parse(path: Path) -> dict[str, Json]:
    """The content of a manifest file, unchecked but a mapping."""
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise damaged(path, f"it is larger than {_MAX_MANIFEST_BYTES:,} bytes")
        parsed: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise damaged(path, "it is nested too deep") from error
    except UserError:
        raise
    except ValueError as error:
        raise damaged(path, "it is no JSON") from error
    if not isinstance(parsed, dict):
        raise damaged(path, "it is no mapping")
    return parsed


def _checksum(content: ManifestContent) -> str:
    """The sha256 of a manifest's content. The order of keys counts: it is that of the columns."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_difference(stored: Values, current: Values) -> str:
    """Describe the first difference between a stored and a current mapping.

    Args:
        stored: as read from a manifest.
        current: as this run has it; tuples count as lists, because JSON stores them as lists.

    Returns:
        One clause such as `data.seed is 0 in the cache and 1 in this run`; empty if both are equal.
    """
    as_stored = json.loads(json.dumps(current))
    return _first_difference(stored, as_stored, "")


def _first_difference(stored: Json, current: Json, path: str) -> str:
    """The same for two values at the place `path`."""
    if not isinstance(stored, Mapping) or not isinstance(current, Mapping):
        if stored == current:
            return ""
        return f"{path} is {stored} in the cache and {current} in this run"
    # A dict keeps its keys in order and drops repetitions.
    for key in dict.fromkeys([*stored, *current]):
        place = f"{path}.{key}".lstrip(".")
        before = stored.get(key)
        now = current.get(key)
        difference = _first_difference(before, now, place)
        if difference:
            return difference
    return ""
