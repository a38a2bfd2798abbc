"""Teacher outputs on disk: sharded, memory-mapped, checksummed; written in pieces that a killed process leaves whole."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning.errors import UserError

Array = NDArray[Any]
SHARD_BYTES = 64 * 2**20
PAGE = mmap.PAGESIZE


@dataclass
class Column:
    """One stored quantity: logits, members, indices, ...

    Attributes:
        dtype: numpy's name of it.
        shape: of one sample.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """The file with all of the data, or no file of that name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Manifest:
    """`manifest.json`: whose outputs these are, the columns, and the shards of each table with their checksums."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError where there is none, or none that can be understood."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no teacher cache; make one with: kd cache ... --output {folder}")
        try:
            content = json.loads(path.read_text())
            if content["version"] != 1:
                raise UserError(f"the teacher cache {folder} has the version {content['version']}; this is version 1")
            return cls(folder, content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged; delete the folder and make the cache again") from error

    def write(self) -> None:
        write_whole(self.folder / "manifest.json", (json.dumps(self.content, indent=1) + "\n").encode())

    @property
    def columns(self) -> dict[str, Column]:
        return {name: Column(c["dtype"], tuple(c["shape"])) for name, c in self.content["columns"].items()}

    def rows(self, table: str) -> Array:
        """The source rows of a table, in the order in which they are stored."""
        path = self.folder / self.content["tables"][table]["rows"]
        try:
            rows: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged; delete the folder and make the cache again") from error
        return rows


@dataclass
class _Shard:
    """One mapped file with the arrays of its columns."""

    file: mmap.mmap
    arrays: dict[str, Array]


@dataclass
class Table:
    """The stored outputs of one (split, view), read by source row.

    Shards are mapped and checked when they are first touched. Pages that were read stay resident until `budget` bytes of
    them were touched, and are then given back, so that memory stays bounded whatever the cache's size.

    Attributes:
        manifest: of the cache.
        name: of the table: `split/view`.
        budget: bytes that may stay resident.
    """

    manifest: Manifest
    name: str
    budget: int = 256 * 2**20
    _shards: dict[int, _Shard] = field(default_factory=dict)
    _touched: int = 0

    def __post_init__(self) -> None:
        entry = self.manifest.content["tables"][self.name]
        rows = self.manifest.rows(self.name)
        self._position = np.full(int(rows.max()) + 1 if len(rows) else 0, -1, dtype=np.int32)
        self._position[rows] = np.arange(len(rows), dtype=np.int32)
        self._files, self._shard_rows, self._count = entry["shards"], entry["shard_rows"], len(rows)
        self._columns = self.manifest.columns
        stored = sum(shard["rows"] for shard in self._files)
        if stored != self._count:
            raise UserError(
                f"the teacher cache {self.manifest.folder} is not finished ({stored:,} of {self._count:,} rows of "
                f"{self.name}); run the same kd cache command again to complete it"
            )
        for shard in self._files:
            path = self.manifest.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path} is missing or cut short; run the same kd cache command again to mend it")

    def read(self, rows: Array) -> dict[str, Array]:
        """Each column's values `(B, ...)` for source rows `(B,)`.

        Raises:
            UserError: for a row that was not cached, and for a shard that was altered.
        """
        if len(rows) and (rows.max() >= len(self._position) or rows.min() < 0):
            self._missing(int(rows.max()))
        at = self._position[rows]
        if len(at) and at.min() < 0:
            self._missing(int(rows[at < 0][0]))
        which, inside = np.divmod(at, self._shard_rows)
        if len(self._files) == 1:
            values = {name: array[inside] for name, array in self._shard(0).arrays.items()}
        else:
            values = {name: np.empty((len(rows), *c.shape), dtype=c.dtype) for name, c in self._columns.items()}
            for number in np.unique(which):
                chosen = which == number
                for name, array in self._shard(int(number)).arrays.items():
                    values[name][chosen] = array[inside[chosen]]
        self._account(len(rows))
        return values

    def _missing(self, row: int) -> None:
        split, _, view = self.name.partition("/")
        raise UserError(
            f"the teacher cache {self.manifest.folder} holds no output for row {row} of the {split} split in view {view}; "
            "it was made for other rows: make it with the data options of this run"
        )

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            entry = self._files[number]
            path = self.manifest.folder / entry["file"]
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hashlib.sha256(mapped).hexdigest() != entry["sha256"]:
                raise UserError(f"{path} was altered since it was written; delete it and run the same kd cache command again")
            arrays, offset = {}, 0
            for name, column in self._columns.items():
                flat = np.frombuffer(mapped, column.dtype, entry["rows"] * int(np.prod(column.shape, dtype=np.int64)), offset)
                arrays[name] = flat.reshape(entry["rows"], *column.shape)
                offset += entry["rows"] * column.row_bytes
            self._shards[number] = _Shard(mapped, arrays)
            self._touched += len(mapped)
        return self._shards[number]

    def _account(self, rows: int) -> None:
        """Give pages back when more than the budget was touched: a row touches at least one page of each column."""
        self._touched += rows * sum(-(-c.row_bytes // PAGE) * PAGE for c in self._columns.values())
        if self._touched > self.budget:
            for shard in self._shards.values():
                if hasattr(shard.file, "madvise"):
                    shard.file.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


class Writer:
    """Appends shards to the tables of a cache; what is whole already is not written again.

    Args:
        folder: of the cache.
        fingerprint: of everything that decides the outputs.
        settings: of the codec, needed to read.
        columns: what a sample's outputs are.
        align: shards hold a multiple of this many rows.

    Raises:
        UserError: where the folder cannot be written, or holds the cache of something else.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], settings: dict[str, Any], columns: dict[str, Column], align: int
    ) -> None:
        described = {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in columns.items()}
        fresh = {"version": 1, "fingerprint": fingerprint, "settings": settings, "columns": described, "tables": {}}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be written ({error.strerror}); choose another --output") from error
        if (folder / "manifest.json").is_file():
            self.manifest = Manifest.read(folder)
            for part in ("fingerprint", "settings", "columns"):
                if self.manifest.content[part] != json.loads(json.dumps(fresh[part])):
                    what = describe_difference(self.manifest.content[part], fresh[part])
                    raise UserError(f"{folder} holds another cache ({what}); choose another --output, or delete it")
        else:
            if any(folder.iterdir()):
                raise UserError(f"{folder} is not empty and holds no cache; choose another --output")
            self.manifest = Manifest(folder, fresh)
        self.columns = columns
        row_bytes = sum(c.row_bytes for c in columns.values())
        self.shard_rows = max(align, SHARD_BYTES // max(1, row_bytes) // align * align)

    def open(self, table: str, rows: Array) -> list[tuple[int, int, int]]:
        """Start or continue a table; returns (shard, from, to) of the row ranges that are still to be computed."""
        tables = self.manifest.content["tables"]
        if table not in tables:
            file = table.replace("/", ".view") + ".rows.npy"
            with (self.manifest.folder / file).open("wb") as out:
                np.save(out, rows)
            tables[table] = {"rows": file, "shard_rows": self.shard_rows, "shards": []}
            self.manifest.write()
        elif not np.array_equal(self.manifest.rows(table), rows):
            raise UserError(f"{self.manifest.folder} was made for other rows of {table}; choose another --output, or delete it")
        ranges = []
        size = tables[table]["shard_rows"]
        done = {shard["file"]: shard for shard in tables[table]["shards"]}
        for number, start in enumerate(range(0, len(rows), size)):
            entry = done.get(self._file(table, number))
            path = self.manifest.folder / self._file(table, number)
            whole = (
                entry is not None and path.is_file() and path.stat().st_size == entry["bytes"] and _sha(path) == entry["sha256"]
            )
            if not whole:
                ranges.append((number, start, min(len(rows), start + size)))
        return ranges

    @staticmethod
    def _file(table: str, number: int) -> str:
        return f"{table.replace('/', '.view')}.{number:05d}.bin"

    def put(self, table: str, number: int, values: dict[str, Array]) -> None:
        """Write one shard and enter it in the manifest."""
        data = b"".join(np.ascontiguousarray(values[n], dtype=c.dtype).tobytes() for n, c in self.columns.items())
        file = self._file(table, number)
        write_whole(self.manifest.folder / file, data)
        rows = len(next(iter(values.values())))
        entry = {"file": file, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        shards = [shard for shard in self.manifest.content["tables"][table]["shards"] if shard["file"] != file]
        self.manifest.content["tables"][table]["shards"] = sorted([*shards, entry], key=lambda shard: str(shard["file"]))
        self.manifest.write()


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_difference(theirs: Any, ours: Any, where: str = "") -> str:
    """The first place where two nested mappings differ, in words; empty where they are equal."""
    ours = json.loads(json.dumps(ours)) if not where else ours
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(k for k in ours if k not in theirs)]:
            if found := describe_difference(theirs.get(key), ours.get(key), f"{where}.{key}".lstrip(".")):
                return found
        return ""
    return "" if theirs == ours else f"{where} is {theirs} there and {ours} here"
