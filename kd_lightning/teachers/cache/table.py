"""Reads the stored teacher outputs of one split and view by source row."""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.files import shard_file
from kd_lightning.teachers.cache.manifest import Array, Manifest, record_dtype
from kd_lightning.weights import sha256_of


class _SingleColumn(NamedTuple):
    """The whole table, if it is one mapped column in one shard.

    Attributes:
        name: name of the column.
        values: `(n, ...)`, backed by the mapped file.
        in_source_order: whether position i holds source row i.
    """

    name: str
    values: Tensor
    in_source_order: bool


class Table:
    """The stored outputs of one (split, view), read by source row.

    A shard is opened and verified when it is first read, and processes share it through the
    system's page cache. Pages of a mapped file stay resident once they are read, together with up
    to 2 MB of neighboring pages. For caches beyond a memory budget, pass `mapped=False`: each batch
    then reads its rows one by one from the file, and nothing stays resident.

    Args:
        manifest: manifest of the cache.
        name: name of the table: `split/view`.
        mapped: whether to memory-map the shards.

    Raises:
        UserError: if the table is not complete, or a shard is missing or truncated.
    """

    def __init__(self, manifest: Manifest, name: str, mapped: bool = True) -> None:
        self.manifest = manifest
        self.name = name
        self.mapped = mapped
        entry = manifest.content["tables"][name]
        self._shards = entry["shards"]
        self._shard_rows = entry["shard_rows"]
        self._position, self._num_rows = manifest.positions(name)
        self._record = record_dtype(manifest.columns)
        self._maps: dict[int, Array] = {}
        self._verified: set[int] = set()
        self._check_shards()

    def _check_shards(self) -> None:
        """Check cheaply that all shards are there; `_verify` checks their content on first use."""
        stored = sum(shard["rows"] for shard in self._shards)
        if stored != self._num_rows:
            raise UserError(
                f"the teacher cache {self.manifest.folder} is not complete ({stored:,} of "
                f"{self._num_rows:,} rows of {self.name}); run the same kd cache command again to "
                "complete it"
            )
        for number, shard in enumerate(self._shards):
            # `read` finds a row's shard by division, so every shard but the last must be full.
            remaining = self._num_rows - number * self._shard_rows
            expected = min(self._shard_rows, remaining)
            named = shard["file"] == shard_file(self.name, number)
            if shard["rows"] != expected or not named:
                raise self.manifest.damaged(
                    f"the shards of {self.name} have other names or sizes"
                )
            path = self.manifest.folder / shard["file"]
            is_whole = path.is_file() and path.stat().st_size == shard["bytes"]
            if not is_whole:
                raise UserError(
                    f"{path} is missing or truncated; run the same kd cache command again to "
                    "repair it"
                )

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Read the stored outputs of some source rows.

        Args:
            rows: int64 `(B,)` on the CPU.

        Returns:
            The values of each column, `(B, ...)`.

        Raises:
            UserError: if a row is not in the table, or a shard was altered.
        """
        single = self._single_column
        # index_select raises IndexError for rows beyond the table, and for the position -1.
        try:
            if single is not None and single.in_source_order:
                return {single.name: single.values.index_select(0, rows)}
            positions = self._position.index_select(0, rows)
            if single is not None:
                return {single.name: single.values.index_select(0, positions)}
        except IndexError:
            self._raise_missing(rows)
        if len(positions) and int(positions.min()) < 0:
            self._raise_missing(rows)
        records = self._read_records(positions)
        columns = {}
        for name in self._record.names or ():
            # The columns of records are interleaved, which torch cannot use.
            values = np.ascontiguousarray(records[name])
            columns[name] = torch.from_numpy(values)
        return columns

    def _read_records(self, positions: Tensor) -> Array:
        """The records at `positions` `(B,)`, fetched shard by shard."""
        places = positions.numpy()
        shard_of, row_of = np.divmod(places, self._shard_rows)
        records = np.empty(len(positions), dtype=self._record)
        for number in np.unique(shard_of):
            in_shard = shard_of == number
            rows = row_of[in_shard]
            if self.mapped:
                mapped = self._map(int(number))
                records[in_shard] = mapped[rows]
            else:
                records[in_shard] = self._read_from_file(int(number), rows)
        return records

    def verify(self) -> None:
        """Check the content of every shard.

        Raises:
            UserError: if a shard was altered.
        """
        for number in range(len(self._shards)):
            self._verify(number)

    def _raise_missing(self, rows: Tensor) -> NoReturn:
        """Raise a UserError that names the first row which is not stored."""
        split, _, view = self.name.partition("/")
        stored = (rows >= 0) & (rows < len(self._position))
        # `rows * stored` replaces rows outside the table by row 0, which is safe to look up.
        stored &= self._position[rows * stored] >= 0
        missing = int(rows[~stored][0])
        raise UserError(
            f"the teacher cache {self.manifest.folder} holds no output for row {missing} of the "
            f"{split} split in view {view}; it was created for other rows: create it with the data "
            "options of this run"
        )

    def _verify(self, number: int) -> Path:
        """The path of a shard, after a check of its checksum on first use."""
        shard = self._shards[number]
        path = self.manifest.folder / shard["file"]
        if number not in self._verified and sha256_of(path) != shard["sha256"]:
            raise UserError(
                f"{path} was altered after it was written; delete it and run the same kd cache "
                "command again"
            )
        self._verified.add(number)
        return path

    def _map(self, number: int) -> Array:
        """The records of a shard as a memory-mapped array."""
        if number not in self._maps:
            with self._verify(number).open("rb") as file:
                # Copy on write, because torch expects writable memory. Nothing is ever written.
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps[number] = np.frombuffer(memory, self._record)
        return self._maps[number]

    @functools.cached_property
    def _single_column(self) -> _SingleColumn | None:
        """The only column of the only shard, the fast path of `read`; None for any other table."""
        columns = self.manifest.columns
        if not self.mapped:
            return None
        if len(self._shards) != 1 or len(columns) != 1:
            return None
        (name,) = columns
        source_order = torch.arange(self._num_rows, dtype=torch.int32)
        in_source_order = torch.equal(self._position, source_order)
        values = torch.from_numpy(self._map(0)[name])
        return _SingleColumn(name, values, in_source_order)

    def _read_from_file(self, number: int, rows: Array) -> Array:
        """The records at `rows` of a shard, read one by one without mapping the file."""
        path = self._verify(number)
        size = self._record.itemsize
        # Opened for each call: a large cache with many views has more shards than a process may
        # hold open.
        with path.open("rb") as file:
            descriptor = file.fileno()
            # A read at a place of its own moves no position that threads would share.
            records = []
            for row in rows.tolist():
                records.append(os.pread(descriptor, size, row * size))
            data = b"".join(records)
        return np.frombuffer(data, self._record)
