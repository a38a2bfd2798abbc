"""Finds the classes of a file of labeled texts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_lightning.data.text.dialect import Dialect
from kd_lightning.data.text.files import (
    DETECTED,
    Column,
    canonical_label,
    column_positions,
    read_rows,
)
from kd_lightning.errors import UserError

_HEADINGS = ("label", "labels", "class", "target", "category", "sentiment")


def read_labels(path: Path, label: Column, dialect: Dialect = DETECTED) -> list[str]:
    """The distinct labels of a file, in alphabetical order.

    Two spellings of one number, such as 1 and 1.0, are one label. Labels with very few samples are
    reported in one line, because a malformed line often looks like a label of its own.

    Args:
        path: the file.
        label: the label column.
        dialect: the format of the file.

    Raises:
        UserError: if there are fewer than two labels, or if the first line looks like a heading
            although the column is given by its number.
    """
    # Reading the samples reports the format once.
    rows = read_rows(path, dialect, report=False)
    heading: list[str] = []
    if isinstance(label, str):
        _, heading = next(rows, (0, []))
    (position,) = column_positions(path, heading, [label])
    values: list[str] = []
    for _, fields in rows:
        if position < len(fields):
            values.append(fields[position].strip())
    classes = _distinct_labels(values)
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
    rare = rare_classes(Counter(map(canonical_label, values)))
    if rare:
        print(
            f"data: {path}: few samples have the labels {rare}; if these are mistakes, correct the "
            "file, or list the valid labels in data.labels"
        )
    alike = classes_spelled_alike(classes)
    if alike:
        print(
            f"data: {path}: the labels {alike} differ only in capital letters, spaces or forms of "
            "characters; if they are one class, correct the file"
        )
    return classes


def _distinct_labels(values: list[str]) -> list[str]:
    """The labels among the values, each in one spelling, in alphabetical order."""
    spellings: dict[str, str] = {}
    for value in sorted({*values} - {""}):
        canonical = canonical_label(value)
        # A label with one spelling keeps it.
        spellings[canonical] = canonical if canonical in spellings else value
    return sorted(spellings.values())


def rare_classes(counts: Mapping[str, int]) -> str:
    """The classes that are probably mistakes, with their counts, in words; empty if there is none.

    These have at most 3 samples, and less than a twentieth of an average class.

    Args:
        counts: number of samples per class; "" stands for samples without a class.
    """
    present = {name: count for name, count in counts.items() if name}
    average = sum(present.values()) / max(1, len(present))
    rare = []
    for name, count in sorted(present.items()):
        if count <= 3 and 20 * count < average:
            rare.append(f"{name[:50]!r} ({count})")
    listed = ", ".join(rare[:10])
    if len(rare) > 10:
        return f"{listed} and {len(rare) - 10} others"
    return listed


def classes_spelled_alike(names: Sequence[str]) -> str:
    """The classes that are probably one, in words; empty if there are none.

    Args:
        names: of all classes.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        words = unicodedata.normalize("NFKC", name).casefold().split()
        spellings.setdefault(" ".join(words), []).append(repr(name[:50]))
    groups = [" and ".join(group) for group in spellings.values() if len(group) > 1]
    listed = ", ".join(groups[:10])
    return f"{listed} and {len(groups) - 10} others" if len(groups) > 10 else listed


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
