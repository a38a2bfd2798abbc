"""Reads texts and labels from CSV, TSV and plain text files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.data.text.dialect import Dialect, Row
from kd_lightning.data.text.words import Sample
from kd_lightning.errors import UserError
from kd_lightning.types import UNLABELLED

_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{0,14})?")

Column = int | str
"""A column: its name in the file's first line, or its number from 0 if there are no names."""

DETECTED = Dialect()
"""The format that a file itself suggests."""


@dataclass
class Texts:
    """The samples of one file.

    Attributes:
        texts: one tuple per sample, with one text or two.
        target: int64 `(N,)`, the class per sample; -100 if it has no label.
    """

    texts: list[Sample]
    target: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def checksum(self) -> str:
        """The SHA-256 of all texts and labels."""
        digest = hashlib.sha256(self.target.numpy().data)
        for texts in self.texts:
            digest.update("\t".join(texts).encode() + b"\n")
        return digest.hexdigest()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with its line ends unchanged.

    Raises:
        UserError: if the file is missing, empty, or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"the file {path} is empty")
    try:
        # Spreadsheet programs write a byte order mark, which is not part of the text.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise UserError(
            f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8"
        ) from error


def read_rows(
    path: Path,
    dialect: Dialect = DETECTED,
    report: bool = True,
) -> Iterator[Row]:
    """Yield each line that is not blank.

    Args:
        path: the file.
        dialect: its format.
        report: print in one line what was detected, if it is not what the suffix suggests.

    Raises:
        UserError: if the file cannot be read.
    """
    yield from dialect.rows(path, read_text(path), report)


def column_positions(
    path: Path,
    heading: Sequence[str],
    columns: Sequence[Column],
) -> list[int]:
    """The position of each column, from 0.

    Args:
        path: the file, for messages.
        heading: the fields of the first line, if it names the columns.
        columns: names or positions.

    Raises:
        UserError: if a name is unknown or a position negative.
    """
    names = [name.strip() for name in heading]
    positions: list[int] = []
    for column in columns:
        if isinstance(column, int):
            if column < 0:
                raise UserError(f"{path}: columns are counted from 0, got {column}")
            positions.append(column)
        elif column in names:
            positions.append(names.index(column))
        else:
            known = ", ".join(names)[:200]
            raise UserError(
                f"{path} has no column {column!r}; its first line names {known}"
            )
    return positions


def read_table(
    path: Path,
    text: Column,
    label: Column | None,
    second: Column | None,
    labels: Sequence[str],
    dialect: Dialect = DETECTED,
) -> Texts:
    """Read the samples of a CSV or TSV file.

    Args:
        path: the file. If a column is given by name, the first line names the columns.
        text: column of the text.
        label: column of the label; `None`: no sample has one.
        second: column of the second text of a pair.
        labels: the values of the label column, class 0 first. An empty value means "no label", and
            two spellings of one number, such as 1 and 1.0, are one label.
        dialect: the format of the file.

    Raises:
        UserError: if the file cannot be read, or if a line has another number of fields than the
            first one, an unknown label or an empty text.
    """
    columns = [text]
    for column in (second, label):
        if column is not None:
            columns.append(column)
    rows = read_rows(path, dialect)
    heading: list[str] = []
    if any(isinstance(column, str) for column in columns):
        _, heading = next(rows, (0, []))
    positions = column_positions(path, heading, columns)
    classes = {canonical_label(name): number for number, name in enumerate(labels)}
    # Without a heading, the first sample decides how many fields a line has.
    num_fields = len(heading)
    texts: list[Sample] = []
    target: list[int] = []
    for line, fields in rows:
        place = f"{path}, line {line}"
        num_fields = num_fields or len(fields)
        values = _values(place, fields, positions)
        if len(fields) != num_fields:
            raise UserError(
                f"{place}: {len(fields)} fields, but the first line has {num_fields}; correct the "
                "line, or set data.delimiter and data.quoted"
            )
        # The label column is the last one.
        value = canonical_label(values.pop()) if label is not None else ""
        if value and value not in classes:
            raise UserError(
                f"{place}: unknown label {value[:100]!r}; valid labels: {_listed(labels)}"
            )
        if not all(values):
            raise UserError(f"{place}: the text is empty")
        texts.append(tuple(values))
        target.append(classes.get(value, UNLABELLED))
    if not texts:
        raise UserError(f"the file {path} has a heading but no samples")
    return Texts(texts, torch.tensor(target))


def canonical_label(label: str) -> str:
    """One spelling of a label that is a number: 1 for "1", "1.0" and " 1"; others are unchanged."""
    text = label.strip()
    # 01 may be a code, and stays.
    if _NUMBER.fullmatch(text) is None:
        return text
    number = float(text)
    return str(int(number)) if number.is_integer() else repr(number)


def _listed(labels: Sequence[str]) -> str:
    text = ", ".join(labels)
    if len(text) <= 200:
        return text
    return f"{text[:200]}..."


def _values(place: str, fields: Sequence[str], positions: Sequence[int]) -> list[str]:
    """The stripped fields at some positions."""
    last = max(positions)
    if last >= len(fields):
        raise UserError(
            f"{place}: there is no column {last}, counted from 0; the line has only {len(fields)}"
        )
    return [fields[position].strip() for position in positions]


def read_sentences(path: Path, pairs: bool) -> Texts:
    """Read unlabeled sentences, one per line; blank lines are skipped.

    Args:
        path: the file.
        pairs: each line holds two texts, separated by a tab.

    Raises:
        UserError: if the file cannot be read, or if a pair has no tab.
    """
    texts: list[Sample] = []
    for line in read_text(path).split("\n"):
        sentence = line.strip()
        if not sentence:
            continue
        sample: Sample = (sentence,)
        if pairs:
            parts = sentence.split("\t", 1)
            sample = tuple(part.strip() for part in parts)
            if len(sample) != 2:
                raise UserError(
                    f"{path}: sentence {len(texts) + 1} has no tab; "
                    "separate the two texts of each line by a tab"
                )
        texts.append(sample)
    return Texts(texts, torch.full((len(texts),), UNLABELLED))
