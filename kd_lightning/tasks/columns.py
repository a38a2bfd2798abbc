"""Columns of a table, as numbers or as texts."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from kd_lightning.errors import UserError

Numbers = NDArray[np.float64]
Texts = NDArray[np.str_]
Mask = NDArray[np.bool_]

Column = Numbers | Texts
"""One value per row, `(N,)`: numbers, or texts as they are written in a file."""

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")
"""Texts that stand for a missing value; among numbers it is NaN."""


def is_missing(column: Column) -> Mask:
    """Whether each row has no value, `(N,)`."""
    # numpy's kinds: "f" is a float, "U" a text. A column has no other kind.
    if column.dtype.kind == "f":
        return np.isnan(cast(Numbers, column))
    return np.isin(column, MISSING)


def as_numbers(name: str, column: Column, remedy: str = "correct the file") -> Numbers:
    """The column as float64 `(N,)`; NaN if missing.

    Args:
        name: of the column, for messages.
        column: its values.
        remedy: what a message suggests if the column holds texts.

    Raises:
        UserError: if a value is not a finite number.
    """
    values = column
    if column.dtype.kind == "U":
        # "nan" is the only text for a missing value that `astype` reads.
        values = np.where(is_missing(column), "nan", column)
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        example = _first_text(values.tolist())
        raise UserError(
            f"column {name!r} must hold numbers, but it holds {example!r}; {remedy}"
        ) from None
    infinite = int(np.isinf(numbers).sum())
    if infinite > 0:
        raise UserError(
            f"column {name!r} has an infinite value in {infinite} rows; remove them"
        )
    return numbers


def _first_text(values: list[str]) -> str:
    """The first value that is not a number."""
    for value in values:
        if not _is_number(value):
            return value
    raise AssertionError("all values are numbers")


def _is_number(text: str) -> bool:
    """Whether Python reads the text as a number, as `astype` does."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_texts(column: Column) -> Texts:
    """The column as texts `(N,)`, without spaces around them; "" if missing.

    Whole numbers have no decimal point, so that a class 1 has the same name in every file format.
    """
    if column.dtype.kind == "U":
        texts = np.char.strip(cast(Texts, column))
    else:
        written = [_number_as_text(number) for number in column.tolist()]
        texts = np.array(written, dtype=np.str_)
    return np.where(is_missing(texts), "", texts)


def _number_as_text(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def distinct(texts: Texts) -> tuple[str, ...]:
    """The different texts that are not missing, in numerical or else alphabetical order."""
    present = set(texts.tolist()) - {""}
    values = sorted(present)
    if all(_is_number(value) for value in values):
        values.sort(key=float)
    return tuple(values)


def positions_among(texts: Texts, names: tuple[str, ...]) -> NDArray[np.int64]:
    """The place of each text among the names, int64 `(N,)`; -1 if it is none of them."""
    position_of = {name: position for position, name in enumerate(names)}
    # Look up each different text once, not each row.
    values, inverse = np.unique(texts, return_inverse=True)
    positions = [position_of.get(value, -1) for value in values.tolist()]
    return np.array(positions, dtype=np.int64)[inverse]
