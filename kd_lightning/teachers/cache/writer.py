"""Writes teacher outputs to a cache shard by shard, so that an interrupted run can be resumed."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.files import (
    MANIFEST_NAME,
    create_folder,
    is_own_file,
    rows_file,
    shard_file,
    write_atomically,
)
from kd_lightning.teachers.cache.manifest import (
    VERSION,
    Array,
    Column,
    Manifest,
    describe_difference,
    record_dtype,
)
from kd_lightning.teachers.cache.schema import ColumnEntry, ManifestContent, ShardEntry
from kd_lightning.values import Value, Values
from kd_lightning.weights import sha256_of

SHARD_BYTES = 64 * 2**20
"""Target size of one shard file."""

_Part = Literal["fingerprint", "settings", "columns"]
_IDENTITY: tuple[_Part, ...] = ("fingerprint", "settings", "columns")
"""What must be equal for a run to continue an existing cache."""


class RowRange(NamedTuple):
    """The rows `start` to `stop` of a table, which shard `shard` holds."""

    shard: int
    start: int
    stop: int


class Writer:
    """Appends shards to the tables of a cache. Complete shards are not written again.

    Args:
        folder: folder of the cache.
        fingerprint: everything that decides the outputs.
        settings: settings of the codec, which a reader needs to decode.
        columns: stored quantities of one sample.
        align: every shard but a table's last holds a multiple of this many rows.

    Raises:
        UserError: if the folder cannot be written, or holds another cache.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Value],
        settings: dict[str, Value],
        columns: dict[str, Column],
        align: int,
    ) -> None:
        column_entries: dict[str, ColumnEntry] = {}
        for name, column in columns.items():
            shape = list(column.shape)
            column_entries[name] = {"dtype": column.dtype, "shape": shape}
        content: ManifestContent = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "settings": settings,
            "columns": column_entries,
            "tables": {},
        }
        self.manifest = _open_manifest(folder, content)
        self.columns = columns
        self.align = align
        # Whole batches: a shard that is computed again then meets the same kernels.
        rows_per_shard = SHARD_BYTES // record_dtype(columns).itemsize
        self.shard_rows = max(align, rows_per_shard // align * align)

    def open(self, table: str, rows: Array) -> list[RowRange]:
        """Start or continue a table.

        Args:
            table: name of the table: `split/view`.
            rows: int64 `(n,)`, source rows in the order in which they will be stored.

        Returns:
            The row ranges that must still be computed, one per shard.

        Raises:
            UserError: if the table was started with other rows.
        """
        tables = self.manifest.content["tables"]
        data = _npy_bytes(rows)
        checksum = hashlib.sha256(data).hexdigest()
        if table not in tables:
            tables[table] = {
                "rows": self._shared_rows(table, checksum) or rows_file(table),
                "shard_rows": self.shard_rows,
                "shards": [],
                "rows_sha256": checksum,
            }
            self._store_rows(table, data)
            self.manifest.write()
        elif tables[table].get("rows_sha256") == checksum:
            self._store_rows(table, data)
        elif not np.array_equal(self.manifest.rows(table), rows):
            raise UserError(
                f"{self.manifest.folder} was created for other rows of {table}; choose another "
                "--output, or delete it"
            )
        # An earlier call may have used shards of another size, which stay.
        size = tables[table]["shard_rows"]
        written = {}
        for shard in tables[table]["shards"]:
            written[shard["file"]] = shard
        missing = []
        for number, start in enumerate(range(0, len(rows), size)):
            entry = written.get(shard_file(table, number))
            if entry is None or not self._is_intact(entry):
                stop = min(len(rows), start + size)
                missing.append(RowRange(number, start, stop))
        return missing

    def put(self, table: str, number: int, values: dict[str, Array]) -> None:
        """Write one shard and list it in the manifest.

        Args:
            table: name of the table.
            number: number of the shard, as `open` returned it.
            values: values of each column, `(n, ...)`, for the rows of the shard.
        """
        # Records hold the columns side by side, so that one read fetches a sample.
        first_column = next(iter(values.values()))
        dtype = record_dtype(self.columns)
        records = np.empty(len(first_column), dtype=dtype)
        for name in self.columns:
            records[name] = values[name]
        # In memory, because the checksum is of exactly what is written.
        data = records.tobytes()
        file = shard_file(table, number)
        write_atomically(self.manifest.folder / file, data)
        entry: ShardEntry = {
            "file": file,
            "rows": len(records),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        # Listed after it is written, so that whatever is listed is whole.
        # The new entry replaces that of a damaged shard of the same name.
        table_entry = self.manifest.content["tables"][table]
        shards = []
        for shard in table_entry["shards"]:
            if shard["file"] != file:
                shards.append(shard)
        shards.append(entry)
        table_entry["shards"] = sorted(shards, key=lambda shard: shard["file"])
        self.manifest.write()

    def _shared_rows(self, table: str, checksum: str) -> str | None:
        """The file of another view's row numbers, if that view has the same rows."""
        split = table.partition("/")[0]
        for other, entry in self.manifest.content["tables"].items():
            same_split = other.partition("/")[0] == split
            if same_split and entry.get("rows_sha256") == checksum:
                return entry["rows"]
        return None

    def _store_rows(self, table: str, data: bytes) -> None:
        """Write the file of a table's row numbers, unless it is there and intact."""
        entry = self.manifest.content["tables"][table]
        path = self.manifest.folder / entry["rows"]
        if not path.is_file() or sha256_of(path) != entry["rows_sha256"]:
            write_atomically(path, data)

    def _is_intact(self, entry: ShardEntry) -> bool:
        """Whether a shard still has the content that the manifest lists."""
        path = self.manifest.folder / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        return sha256_of(path) == entry["sha256"]


def _npy_bytes(rows: Array) -> bytes:
    """Row numbers in numpy's file format."""
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def _open_manifest(folder: Path, content: ManifestContent) -> Manifest:
    """The manifest in `folder` if it describes the same cache; a new one if there is none.

    A new manifest is written before any other file, so that a killed call can be continued.
    """
    create_folder(folder)
    if not (folder / MANIFEST_NAME).is_file():
        if not all(is_own_file(path.name) for path in folder.iterdir()):
            raise UserError(
                f"{folder} is not empty and holds no cache; choose another --output"
            )
        manifest = Manifest(folder, content)
        manifest.write()
        return manifest
    manifest = Manifest.read(folder)
    for part in _IDENTITY:
        stored = cast(Values, manifest.content[part])
        own = cast(Values, content[part])
        # The stored part went through JSON, which turns tuples into lists.
        if stored != json.loads(json.dumps(own)):
            difference = describe_difference(stored, own)
            raise UserError(
                f"{folder} holds another cache ({difference}); choose another --output, or delete "
                "the folder"
            )
    return manifest
