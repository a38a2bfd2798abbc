"""Finds the classes of a file of labeled texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.data.text.files import Column, column_positions, read_rows
from kd_lightning.errors import UserError

_HEADINGS = ("label", "labels", "class", "target", "category", "sentiment")


def read_labels(path: Path, label: Column) -> list[str]:
    """The distinct labels of a file, in alphabetical order.

    Args:
        path: the file.
        label: the label column.

    Raises:
        UserError: if there are fewer than two labels, or if the first line looks like a heading
            although the column is given by its number.
    """
    rows = read_rows(path)
    heading: list[str] = []
    if isinstance(label, str):
        _, heading = next(rows, (0, []))
    (position,) = column_positions(path, heading, [label])
    values: list[str] = []
    for _, fields in rows:
        if position < len(fields):
            values.append(fields[position].strip())
    classes = sorted({*values} - {""})
    if not classes:
        raise UserError(
            f"{path}: no sample has a label in column {label!r}; set data.label to another column"
        )
    if isinstance(label, int) and _starts_with_heading(values):
        raise UserError(
            f"{path}: the first line looks like a heading, because no other line has its label "
            f"{values[0]!r}; name the columns (data.text and data.label), or list all classes in "
            "data.labels"
        )
    if len(classes) == 1:
        raise UserError(
            f"{path}: all samples have the label {classes[0]!r}; list all classes in data.labels"
        )
    return classes


def _starts_with_heading(values: Sequence[str]) -> bool:
    """Whether the first value is unlike all others.

    Args:
        values: the label column of all lines.
    """
    counts = Counter(values)
    first = values[0]
    if counts[first] > 1:
        return False
    if first.lower() in _HEADINGS:
        return True
    # A word above a column of numbers is a heading.
    others = set(counts) - {first, ""}
    if others and not _is_number(first) and all(map(_is_number, others)):
        return True
    # If each class has several samples, a single one of another class is improbable.
    if len(others) < 2:
        return False
    return min(counts[value] for value in others) > 1


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdigit()
