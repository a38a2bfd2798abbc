"""Reads rows of tables that a user brings, encoded like the training rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from kd_lightning.data.new_samples import Content, InputReader, NewSample
from kd_lightning.data.tabular.features import FeatureEncoder
from kd_lightning.data.tabular.files import Table, num_rows, read_table
from kd_lightning.data.text.dialect import Dialect
from kd_lightning.data.text.files import DETECTED, read_rows
from kd_lightning.errors import UserError
from kd_lightning.values import Value, Values


@dataclass(frozen=True)
class RowReader(InputReader):
    """Encodes rows of CSV, TSV or Parquet files to float32 `(B, F)`.

    Columns that are no features are ignored.

    Attributes:
        encoder: fitted to the training rows.
        dialect: the format of text files.
    """

    encoder: FeatureEncoder
    dialect: Dialect = DETECTED

    kind: ClassVar[str] = "rows of a table"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet")

    def samples(self, path: Path) -> Iterator[NewSample]:
        """The rows of a file by the numbers of their lines.

        Args:
            path: of the file; its first line names the columns.

        Raises:
            UserError: if the file cannot be read, or lacks a column that the network
                reads.
        """
        if path.suffix.lower() == ".parquet":
            yield from self._rows_of_table(path)
            return
        # The first line names the columns, whose order may differ from the training
        # table's.
        lines = read_rows(path, self.dialect, report=False)
        _, heading = next(lines, (0, []))
        names = [name.strip() for name in heading]
        self._check_columns(path, names)
        for number, fields in lines:
            name = f"{path}:{number}"
            if len(fields) != len(names):
                problem = UserError(
                    f"{len(fields)} fields, but the first line names {len(names)} "
                    "columns"
                )
                yield NewSample(name, None, problem)
                continue
            values = [value.strip() for value in fields]
            yield NewSample(name, dict(zip(names, values, strict=True)))

    def _rows_of_table(self, path: Path) -> Iterator[NewSample]:
        table = read_table(path)
        self._check_columns(path, list(table))
        for number in range(num_rows(table)):
            row = {}
            for name, column in table.items():
                row[name] = _as_text(column[number])
            yield NewSample(f"{path}:{number + 1}", row)

    def _check_columns(self, path: Path, names: Sequence[str]) -> None:
        for feature in self.encoder.features:
            if feature.name not in names:
                raise UserError(
                    f"{path} has no column {feature.name!r}, which the network reads; "
                    "its columns "
                    f"are {', '.join(names)[:200]}"
                )
            # Nothing says which of two equal columns the network read.
            if names.count(feature.name) > 1:
                raise UserError(
                    f"{path}: {names.count(feature.name)} columns have the name "
                    f"{feature.name!r}; give each column a name of its own"
                )

    def encode(self, contents: Sequence[Content]) -> Tensor:
        """Encoded features, float32 `(B, F)`.

        Args:
            contents: B rows by the names of their columns.

        Raises:
            UserError: if a value is missing or cannot be encoded.
        """
        table: Table = {}
        for feature in self.encoder.features:
            # Text for every column, as in a CSV file; the encoder turns it into
            # numbers.
            texts = [_value_of(content, feature.name) for content in contents]
            table[feature.name] = np.array(texts, dtype=np.str_)
        return self.encoder.encode(table)

    def describe(self) -> Values:
        """The encoding of all features."""
        features: list[Value] = []
        for feature in self.encoder.features:
            features.append(dict(vars(feature)))
        return {"kind": self.kind, "features": features}


def _value_of(content: Content, name: str) -> str:
    if not isinstance(content, Mapping):
        raise UserError("this network reads rows of a table; give a CSV file")
    if name not in content:
        raise UserError(f"the column {name!r}, which the network reads, is missing")
    return content[name]


def _as_text(value: np.str_ | np.float64) -> str:
    """A value as a CSV file would hold it; NaN is an empty cell."""
    if isinstance(value, np.floating):
        if np.isnan(value):
            return ""
        return repr(float(value))
    return str(value)
