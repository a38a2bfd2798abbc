"""Teacher outputs on disk: sharded, memory-mapped, checksummed; written in pieces that a killed process leaves whole."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError

Array = NDArray[Any]
SHARD_BYTES = 64 * 2**20


@dataclass
class Column:
    """One stored quantity: logits, members, indices, ...

    Attributes:
        dtype: numpy's name of it.
        shape: of one sample.
    """

    dtype: str
    shape: tuple[int, ...]


def record(columns: dict[str, Column]) -> np.dtype[Any]:
    """One sample as it is stored: its columns one behind the other, so that one read fetches it."""
    return np.dtype([(name, column.dtype, column.shape) for name, column in columns.items()])


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
        self._positions: dict[str, tuple[Tensor, int]] = {}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError where there is none, or none that can be understood."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{folder} holds no teacher cache; make one with: kd cache ... --output {folder}"
            )
        try:
            content = json.loads(path.read_text())
            if content["version"] != 1:
                raise UserError(
                    f"the teacher cache {folder} has the version {content['version']}; this is version 1"
                )
            return cls(folder, content)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged; delete the folder and make the cache again"
            ) from error

    def write(self) -> None:
        write_whole(
            self.folder / "manifest.json", (json.dumps(self.content, indent=1) + "\n").encode()
        )

    @property
    def columns(self) -> dict[str, Column]:
        return {
            name: Column(c["dtype"], tuple(c["shape"]))
            for name, c in self.content["columns"].items()
        }

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(
            int(shard["bytes"])
            for table in self.content["tables"].values()
            for shard in table["shards"]
        )

    def rows(self, table: str) -> Array:
        """The source rows of a table, in the order in which they are stored."""
        path = self.folder / self.content["tables"][table]["rows"]
        try:
            rows: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} is missing or damaged; delete the folder and make the cache again"
            ) from error
        return rows

    def positions(self, table: str) -> tuple[Tensor, int]:
        """Where each source row stands in a table, -1 where it does not, and how many do. Views of the same rows share them."""
        file = self.content["tables"][table]["rows"]
        if file not in self._positions:
            rows = self.rows(table)
            position = torch.full((int(rows.max()) + 1 if len(rows) else 0,), -1, dtype=torch.int32)
            position[torch.from_numpy(rows)] = torch.arange(len(rows), dtype=torch.int32)
            self._positions[file] = position, len(rows)
        return self._positions[file]


@dataclass
class Table:
    """The stored outputs of one (split, view), read by source row.

    Shards are opened and checked when they are first touched, and shared between processes through the system's cache. A
    mapped page that was read stays resident, and with it up to 2 MB of its neighbours; so only caches that fit a budget are
    mapped, and from larger ones a batch's rows are read one by one, which keeps nothing resident.

    Attributes:
        manifest: of the cache.
        name: of the table: `split/view`.
        mapped: whether shards are memory-mapped.
    """

    manifest: Manifest
    name: str
    mapped: bool = True
    _maps: dict[int, Array] = field(default_factory=dict)
    _sound: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        entry = self.manifest.content["tables"][self.name]
        self._position, self._count = self.manifest.positions(self.name)
        self._files, self._shard_rows = entry["shards"], entry["shard_rows"]
        self._record = record(self.manifest.columns)
        stored = sum(shard["rows"] for shard in self._files)
        if stored != self._count:
            raise UserError(
                f"the teacher cache {self.manifest.folder} is not finished ({stored:,} of {self._count:,} rows of "
                f"{self.name}); run the same kd cache command again to complete it"
            )
        for shard in self._files:
            path = self.manifest.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{path} is missing or cut short; run the same kd cache command again to mend it"
                )

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Each column's values `(B, ...)` for source rows `(B,)`, int64 on the CPU.

        Raises:
            UserError: for a row that was not cached, and for a shard that was altered.
        """
        try:  # index_select checks both: rows beyond the table, and positions of -1
            if self._only is not None:
                name, column, in_order = self._only
                return {
                    name: column.index_select(
                        0, rows if in_order else self._position.index_select(0, rows)
                    )
                }
            at = self._position.index_select(0, rows)
        except IndexError:
            self._missing(rows)
        if len(at) and int(at.min()) < 0:
            self._missing(rows)
        which, inside = np.divmod(at.numpy(), self._shard_rows)
        records = np.empty(len(rows), dtype=self._record)
        for number in np.unique(which):
            chosen = which == number
            take = self._map(int(number)).__getitem__ if self.mapped else self._pick(int(number))
            records[chosen] = take(inside[chosen])
        return {
            name: torch.from_numpy(np.ascontiguousarray(records[name]))
            for name in self._record.names or ()
        }

    def _missing(self, rows: Tensor) -> NoReturn:
        split, _, view = self.name.partition("/")
        known = (rows >= 0) & (rows < len(self._position))
        known &= self._position[rows * known] >= 0
        raise UserError(
            f"the teacher cache {self.manifest.folder} holds no output for row {int(rows[~known][0])} of the {split} split in "
            f"view {view}; it was made for other rows: make it with the data options of this run"
        )

    def _checked(self, number: int) -> Path:
        entry = self._files[number]
        path = self.manifest.folder / str(entry["file"])
        if number not in self._sound and _sha(path) != entry["sha256"]:
            raise UserError(
                f"{path} was altered since it was written; delete it and run the same kd cache command again"
            )
        self._sound.add(number)
        return path

    def _map(self, number: int) -> Array:
        if number not in self._maps:
            with self._checked(number).open("rb") as file:
                # A private copy of what is written, which is nothing: torch wants memory that could be written to.
                self._maps[number] = np.frombuffer(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), self._record
                )
        return self._maps[number]

    @functools.cached_property
    def _only(self) -> tuple[str, Tensor, bool] | None:
        """The only column of the only shard, if it is mapped, and whether it is in the order of the source's rows."""
        if not self.mapped or not len(self._files) == len(self.manifest.columns) == 1:
            return None
        (name,) = self.manifest.columns
        in_order = torch.equal(self._position, torch.arange(self._count, dtype=torch.int32))
        return name, torch.from_numpy(self._map(0)[name]), in_order

    def _pick(self, number: int) -> Callable[[Array], Array]:
        path, size = self._checked(number), self._record.itemsize

        def pick(rows: Array) -> Array:
            # Opened each time: all views of a large cache have more shards than a process may hold open.
            with path.open("rb") as file:
                at = file.fileno()
                return np.frombuffer(
                    b"".join(os.pread(at, size, row * size) for row in rows.tolist()), self._record
                )

        return pick


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
        self,
        folder: Path,
        fingerprint: dict[str, Any],
        settings: dict[str, Any],
        columns: dict[str, Column],
        align: int,
    ) -> None:
        described = {
            name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in columns.items()
        }
        fresh = {
            "version": 1,
            "fingerprint": fingerprint,
            "settings": settings,
            "columns": described,
            "tables": {},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be written ({error.strerror}); choose another --output"
            ) from error
        if (folder / "manifest.json").is_file():
            self.manifest = Manifest.read(folder)
            for part in ("fingerprint", "settings", "columns"):
                if self.manifest.content[part] != json.loads(json.dumps(fresh[part])):
                    what = describe_difference(self.manifest.content[part], fresh[part])
                    raise UserError(
                        f"{folder} holds another cache ({what}); choose another --output, or delete it"
                    )
        else:
            if any(folder.iterdir()):
                raise UserError(
                    f"{folder} is not empty and holds no cache; choose another --output"
                )
            self.manifest = Manifest(folder, fresh)
        self.columns = columns
        self.shard_rows = max(align, SHARD_BYTES // record(columns).itemsize // align * align)

    def open(self, table: str, rows: Array) -> list[tuple[int, int, int]]:
        """Start or continue a table; returns (shard, from, to) of the row ranges that are still to be computed."""
        tables = self.manifest.content["tables"]
        if table not in tables:
            file = self._rows_file(table, rows)
            tables[table] = {"rows": file, "shard_rows": self.shard_rows, "shards": []}
            self.manifest.write()
        elif not np.array_equal(self.manifest.rows(table), rows):
            raise UserError(
                f"{self.manifest.folder} was made for other rows of {table}; choose another --output, or delete it"
            )
        ranges = []
        size = tables[table]["shard_rows"]
        done = {shard["file"]: shard for shard in tables[table]["shards"]}
        for number, start in enumerate(range(0, len(rows), size)):
            entry = done.get(self._file(table, number))
            path = self.manifest.folder / self._file(table, number)
            whole = (
                entry is not None
                and path.is_file()
                and path.stat().st_size == entry["bytes"]
                and _sha(path) == entry["sha256"]
            )
            if not whole:
                ranges.append((number, start, min(len(rows), start + size)))
        return ranges

    def _rows_file(self, table: str, rows: Array) -> str:
        """The file of these rows: another view's, where one has the same, else a new one."""
        tables, split = self.manifest.content["tables"], table.partition("/")[0]
        for other in tables:
            if other.partition("/")[0] == split and np.array_equal(self.manifest.rows(other), rows):
                return str(tables[other]["rows"])
        file = table.replace("/", ".view") + ".rows.npy"
        with (self.manifest.folder / file).open("wb") as out:
            np.save(out, rows)
        return file

    @staticmethod
    def _file(table: str, number: int) -> str:
        return f"{table.replace('/', '.view')}.{number:05d}.bin"

    def put(self, table: str, number: int, values: dict[str, Array]) -> None:
        """Write one shard and enter it in the manifest."""
        records = np.empty(len(next(iter(values.values()))), dtype=record(self.columns))
        for name in self.columns:
            records[name] = values[name]
        data = records.tobytes()
        file = self._file(table, number)
        write_whole(self.manifest.folder / file, data)
        entry = {
            "file": file,
            "rows": len(records),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        shards = [
            shard
            for shard in self.manifest.content["tables"][table]["shards"]
            if shard["file"] != file
        ]
        self.manifest.content["tables"][table]["shards"] = sorted(
            [*shards, entry], key=lambda shard: str(shard["file"])
        )
        self.manifest.write()


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_difference(theirs: Any, ours: Any, where: str = "") -> str:
    """The first place where two nested mappings differ, in words; empty where they are equal."""
    ours = json.loads(json.dumps(ours)) if not where else ours
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(k for k in ours if k not in theirs)]:
            if found := describe_difference(
                theirs.get(key), ours.get(key), f"{where}.{key}".lstrip(".")
            ):
                return found
        return ""
    return "" if theirs == ours else f"{where} is {theirs} there and {ours} here"
