"""Reads tables from CSV, TSV and Parquet files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from kd_lightning.data.text.dialect import Dialect
from kd_lightning.data.text.files import DETECTED, canonical_label, read_rows
from kd_lightning.errors import UserError
from kd_lightning.tasks.columns import Column

Table = dict[str, Column]
"""Columns by name, all of the same length."""


def read_table(path: Path, dialect: Dialect = DETECTED) -> Table:
    """Read all columns of a file, in its order.

    Args:
        path: Parquet if it ends in `.parquet`, quoted CSV if in `.csv`, else split at tabs. The
            first line of a text file names its columns.
        dialect: the format of a text file, if it is another one.

    Raises:
        UserError: if the file cannot be read or holds no samples.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    table = _read_parquet(path) if is_parquet else _read_text(path, dialect)
    if num_rows(table) == 0:
        raise UserError(f"the file {path} holds no samples")
    return table


def num_rows(table: Table) -> int:
    """The number of samples N."""
    return len(next(iter(table.values()), ()))


def rows_of(table: Table, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Table:
    """Some rows `(n,)` of a table."""
    return {name: column[rows] for name, column in table.items()}


def consistent_labels(column: Column) -> Column:
    """A column of classes, with one spelling of each number if it has several, as 1 and 1.0."""
    if column.dtype.kind != "U":
        return column
    values = np.unique(column)
    canonical = [canonical_label(value) for value in values.tolist()]
    if len(set(canonical)) == len(canonical):
        return column
    return np.array(
        [canonical_label(value) for value in column.tolist()], dtype=np.str_
    )


def _read_text(path: Path, dialect: Dialect) -> Table:
    rows = read_rows(path, dialect)
    _, heading = next(rows)
    names = [name.strip() for name in heading]
    _check_names(path, names)
    lines = []
    for number, fields in rows:
        if len(fields) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields, but the first line names "
                f"{len(names)} columns"
            )
        lines.append(fields)
    columns = zip(*lines, strict=True)
    table: Table = {}
    for name, values in zip(names, columns, strict=False):
        # A fixed-width array of texts; numbers are parsed when a column is used as numbers.
        texts = [value.strip() for value in values]
        table[name] = np.array(texts, dtype=np.str_)
    return table


def _check_names(path: Path, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f"{path}: {count} columns have the name {name!r}; the first line must give each "
                "column a name of its own"
            )


def _read_parquet(path: Path) -> Table:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"reading {path} needs pyarrow; install it with: pip install 'kd_lightning[tables]'"
        ) from None
    try:
        content = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    table: Table = {}
    for name in content.column_names:
        column = content[name]
        if pyarrow.types.is_dictionary(column.type):
            # As categories of pandas are stored; `to_numpy` would take gaps for the last category.
            column = column.cast(column.type.value_type)
        values = column.to_numpy()
        if values.dtype.kind in "biuf":
            table[name] = values.astype(np.float64)
        else:
            # Texts, and booleans with gaps, arrive as Python objects.
            texts = []
            for value in values:
                texts.append("" if value is None else str(value))
            table[name] = np.array(texts, dtype=np.str_)
    return table
