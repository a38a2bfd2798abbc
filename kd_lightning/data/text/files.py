"""Sentences and labels from CSV, TSV and text files."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.types import UNLABELLED

Column = int | str
"""A column: its name in the file's first line, or its number from 0 in a file that has no such line."""


@dataclass
class Texts:
    """The samples of one file.

    Attributes:
        texts: one tuple a sample, of one text or of two.
        target: int64 `(N,)`, -100 where there is no label.
    """

    texts: list[tuple[str, ...]]
    target: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def checksum(self) -> str:
        """sha256 over texts and labels."""
        digest = hashlib.sha256(self.target.numpy().data)
        for texts in self.texts:
            digest.update("\t".join(texts).encode() + b"\n")
        return digest.hexdigest()


def read_text(path: Path) -> str:
    """The file's text, its line ends as they are.

    Raises:
        UserError: where it is missing, empty, or not UTF-8 (with the line).
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"the file {path} is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file"
        ) from error


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not blank: quoted CSV where the name ends so, else split at tabs."""
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            yield from ((reader.line_num, row) for row in reader if any(row))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error
        return
    # TSV in the manner of GLUE has no quoting: a quotation mark is part of the sentence.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r").split("\t")


def _positions(path: Path, first: list[str], columns: Sequence[Column]) -> list[int]:
    first = [name.strip() for name in first]
    for column in columns:
        if isinstance(column, int) and column < 0:
            raise UserError(f"{path}: columns are counted from 0, got {column}")
        if isinstance(column, str) and column not in first:
            raise UserError(
                f"{path} has no column {column!r}; its first line names {', '.join(first)[:200]}"
            )
    return [first.index(column) if isinstance(column, str) else column for column in columns]


def read_table(
    path: Path, text: Column, label: Column | None, second: Column | None, labels: Sequence[str]
) -> Texts:
    """The samples of a CSV or TSV file.

    Args:
        path: the file; columns that are named stand in its first line.
        text: column of the text.
        label: column of the label; `None`: no sample has one.
        second: column of a second text, for pairs.
        labels: what stands in the label column, class 0 first; a sample whose label is empty has none.

    Raises:
        UserError: for a missing or empty file, bytes that are not UTF-8, a missing column, an unknown label or an empty text.
    """
    columns = [column for column in (text, second, label) if column is not None]
    rows = read_rows(path)
    named = any(isinstance(column, str) for column in columns)
    positions = _positions(path, next(rows)[1] if named else [], columns)
    known = {name: number for number, name in enumerate(labels)}
    texts, target = [], []
    for line, fields in rows:
        if max(positions) >= len(fields):
            raise UserError(
                f"{path}, line {line}: there is no column {max(positions)}; the line has {len(fields)} (from 0)"
            )
        values = [fields[at].strip() for at in positions]
        value = values.pop() if label is not None else ""
        if value and value not in known:
            raise UserError(
                f"{path}, line {line}: the label {value!r} is none of the classes {', '.join(labels)}"
            )
        if not all(values):
            raise UserError(f"{path}, line {line}: the text is empty")
        texts.append(tuple(values))
        target.append(known.get(value, UNLABELLED))
    if not texts:
        raise UserError(f"the file {path} holds a heading and no sample")
    return Texts(texts, torch.tensor(target))


_HEADINGS = ("label", "labels", "class", "target", "category", "sentiment")


def read_labels(path: Path, label: Column) -> list[str]:
    """The distinct labels of a file, in alphabetical order.

    Raises:
        UserError: where there are none, or where the first line looks like a heading and the column is not named.
    """
    rows = read_rows(path)
    (at,) = _positions(path, next(rows)[1] if isinstance(label, str) else [], [label])
    found = [fields[at].strip() for _, fields in rows if at < len(fields)]
    classes = sorted({*found} - {""})
    if not classes:
        raise UserError(
            f"{path}: no sample has a label in column {label!r}; is it another column (data.label)?"
        )
    first, rest = found[0], [name for name in classes if name != found[0]]
    odd = len(rest) > 1 and min(map(found.count, rest)) > 1
    odd = (
        odd
        or first.lower() in _HEADINGS
        or (bool(rest) and not _number(first) and all(map(_number, rest)))
    )
    if isinstance(label, int) and odd and found.count(first) == 1:
        raise UserError(
            f"{path}: the first line looks like a heading, for its label {found[0]!r} stands nowhere else; name the columns "
            "(data.text and data.label), or name all classes in data.labels"
        )
    if len(classes) == 1:
        raise UserError(
            f"{path}: all samples have the label {classes[0]!r}; name all classes in data.labels"
        )
    return classes


def _number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdigit()


def read_sentences(path: Path, pairs: bool) -> Texts:
    """Raw sentences, one a line, blank lines left out; pairs are split at a tab."""
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    texts = [
        tuple(part.strip() for part in line.split("\t", 1)) if pairs else (line,) for line in lines
    ]
    for at, sample in enumerate(texts):
        if pairs and len(sample) != 2:
            raise UserError(
                f"{path}: sentence {at + 1} has no tab; each line holds two texts with a tab between them"
            )
    return Texts(texts, torch.full((len(texts),), UNLABELLED))
