"""What a cache's manifest must look like; checked whenever one is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias, TypedDict, cast

import numpy as np

from kd_lightning.values import Value

Json: TypeAlias = Value
"""What a manifest may hold."""

_MAX_DEPTH = 40
_MAX_SAMPLE_BYTES = 2**31
_DTYPES = ("float32", "float16", "int16", "int32", "uint8")
_TABLE = re.compile(r"\w+/(clean|\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ShardEntry(TypedDict):
    """One shard as the manifest lists it: its file name, row count, size in bytes and checksum."""

    file: str
    rows: int
    bytes: int
    sha256: str


class _TableEntry(TypedDict):
    rows: str
    shard_rows: int
    shards: list[ShardEntry]


class TableEntry(_TableEntry, total=False):
    """One table as the manifest lists it: the file of its row numbers, and its shards.

    Caches of version 1 have no checksum of the row numbers.
    """

    rows_sha256: str


class ColumnEntry(TypedDict):
    """One column as the manifest lists it: numpy's name of the dtype, and the shape per sample."""

    dtype: str
    shape: list[int]


class ManifestContent(TypedDict):
    """The content of `manifest.json`, without its checksum."""

    version: int
    fingerprint: dict[str, Json]
    settings: dict[str, Json]
    columns: dict[str, ColumnEntry]
    tables: dict[str, TableEntry]


class SchemaError(ValueError):
    """What is wrong with a manifest: one clause."""


def check(content: Json) -> ManifestContent:
    """Check the parsed content of a manifest.

    Args:
        content: without its checksum.

    Raises:
        SchemaError: if it is not of the right form, or contradicts itself.
    """
    top = mapping(content, "the manifest")
    _check_depth(top)
    version = integer(top, "version", "the manifest")
    mapping(item(top, "fingerprint", "the manifest"), "fingerprint")
    mapping(item(top, "settings", "the manifest"), "settings")
    columns = mapping(item(top, "columns", "the manifest"), "columns")
    sample_bytes = _check_columns(columns)
    tables = mapping(item(top, "tables", "the manifest"), "tables")
    for name, value in tables.items():
        if not _TABLE.fullmatch(name):
            raise SchemaError(f"tables has the name {name!r}")
        path = f"tables.{name}"
        table = mapping(value, path)
        _check_table(table, path, sample_bytes, version)
    return cast(ManifestContent, top)


def mapping(value: Json, name: str) -> dict[str, Json]:
    """`value` if it is a mapping.

    Raises:
        SchemaError: otherwise.
    """
    if not isinstance(value, dict):
        raise SchemaError(f"{name} is no mapping")
    return value


def item(parent: Mapping[str, Json], key: str, name: str) -> Json:
    """The value of a key that must exist.

    Raises:
        SchemaError: if it does not.
    """
    if key not in parent:
        raise SchemaError(f"{name} has no {key}")
    return parent[key]


def integer(parent: Mapping[str, Json], key: str, name: str, least: int = 1) -> int:
    """The value of a key that must be an int64 of at least `least`.

    Raises:
        SchemaError: otherwise.
    """
    value = item(parent, key, name)
    # A bool is an int to Python.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not least <= cast(int, value) < 2**63:
        raise SchemaError(f"{name}.{key} is no integer of at least {least}")
    return cast(int, value)


def text(parent: Mapping[str, Json], key: str, name: str) -> str:
    """The value of a key that must be a text.

    Raises:
        SchemaError: otherwise.
    """
    value = item(parent, key, name)
    if not isinstance(value, str):
        raise SchemaError(f"{name}.{key} is no text")
    return value


def sequence(parent: Mapping[str, Json], key: str, name: str) -> list[Json]:
    """The value of a key that must be a list.

    Raises:
        SchemaError: otherwise.
    """
    value = item(parent, key, name)
    if not isinstance(value, list):
        raise SchemaError(f"{name}.{key} is no list")
    return value


def _check_depth(content: Json) -> None:
    """Refuse nesting that would exhaust the stack of whoever walks through it."""
    # Level by level, because a recursion would exhaust the stack itself.
    level: list[Json] = [content]
    for _ in range(_MAX_DEPTH):
        inner: list[Json] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return
        level = inner
    raise SchemaError(f"it is nested more than {_MAX_DEPTH} levels deep")


def _check_columns(columns: Mapping[str, Json]) -> int:
    """Check the columns; returns the bytes of a sample."""
    total = 0
    for name, value in columns.items():
        path = f"columns.{name}"
        column = mapping(value, path)
        dtype = text(column, "dtype", path)
        if dtype not in _DTYPES:
            raise SchemaError(
                f"{path}.dtype is {dtype!r}, not one of {', '.join(_DTYPES)}"
            )
        size = np.dtype(dtype).itemsize
        for length in sequence(column, "shape", path):
            problem = SchemaError(
                f"{path}.shape has an entry that is no positive integer"
            )
            if not isinstance(length, int) or isinstance(length, bool):
                raise problem
            if length < 1:
                raise problem
            size *= length
        total += size
    if not 0 < total <= _MAX_SAMPLE_BYTES:
        raise SchemaError(f"columns take {total} bytes per sample")
    return total


def _check_table(
    table: Mapping[str, Json],
    path: str,
    sample_bytes: int,
    version: int,
) -> None:
    """Check one table and its shards."""
    _check_file_name(text(table, "rows", path), f"{path}.rows")
    # Version 1 had no such checksum.
    if version > 1 or "rows_sha256" in table:
        _check_sha256(text(table, "rows_sha256", path), f"{path}.rows_sha256")
    shard_rows = integer(table, "shard_rows", path)
    for number, value in enumerate(sequence(table, "shards", path)):
        name = f"{path}.shards[{number}]"
        shard = mapping(value, name)
        _check_file_name(text(shard, "file", name), f"{name}.file")
        _check_sha256(text(shard, "sha256", name), f"{name}.sha256")
        rows = integer(shard, "rows", name)
        if rows > shard_rows:
            raise SchemaError(f"{name} has more rows than {path}.shard_rows")
        # A reader computes a row's place in the file from these sizes.
        if integer(shard, "bytes", name) != rows * sample_bytes:
            raise SchemaError(f"{name}.bytes does not fit its rows and the columns")


def _check_file_name(name: str, path: str) -> None:
    """Refuse a name that is not one of a file in the cache's own folder."""
    # A name with a folder in it would lead out of the cache.
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise SchemaError(f"{path} is no file name")


def _check_sha256(value: str, path: str) -> None:
    """Refuse what cannot be a checksum."""
    if not _SHA256.fullmatch(value):
        raise SchemaError(f"{path} is no sha256")
