"""Tables in the terminal; a table that is too wide is split by columns instead of cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.table import Table

from kd_lightning.errors import printable
from kd_lightning.escaping import plain

_SEPARATOR_WIDTH = 3
"""Characters of the terminal between the texts of two columns."""


def tables(
    title: str | None,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    width: int,
) -> Iterator[Table]:
    """Split a table into tables that fit the terminal; each repeats the first column.

    Args:
        title: printed above the first table.
        headings: one per column; they wrap between words.
        lines: one text per column.
        width: characters per line of the terminal.
    """
    # Before the columns are measured: an escape sequence takes no room, what replaces it does.
    headings = [printable(heading) for heading in headings]
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = _column_widths(headings, lines)
    # The names of runs wrap, so that they leave room for numbers.
    widths[0] = min(widths[0], width // 2)
    for number, columns in enumerate(_fit_columns(widths, width)):
        is_first = number == 0
        shown_title = plain(title, "table.title") if title and is_first else None
        table = Table(title=shown_title, title_justify="left")
        table.add_column(plain(headings[0]), overflow="fold")
        for column in columns:
            table.add_column(
                plain(headings[column]),
                justify="right",
                min_width=widths[column],
                overflow="fold",
            )
        for line in lines:
            cells = [plain(line[column]) for column in columns]
            table.add_row(plain(line[0]), *cells)
        yield table


def _column_widths(
    headings: Sequence[str], lines: Sequence[Sequence[str]]
) -> list[int]:
    """The width of each column's longest cell or word of the heading, in characters."""
    widths = []
    for column, heading in enumerate(headings):
        # A heading may wrap between words, a cell may not.
        texts = heading.split()
        for line in lines:
            texts.append(line[column])
        # In a terminal, some characters are two columns wide.
        widths.append(max(map(cell_len, texts), default=0))
    return widths


def _fit_columns(widths: Sequence[int], width: int) -> list[list[int]]:
    """Distribute all columns but the first over tables of at most `width` characters."""
    groups: list[list[int]] = [[]]
    # The first column, which each table repeats, and the left border take their share.
    room = width - widths[0] - _SEPARATOR_WIDTH - 1
    left = room
    for column in range(1, len(widths)):
        needed = widths[column] + _SEPARATOR_WIDTH
        # A column that fits nowhere gets a table of its own.
        if groups[-1] and left < needed:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= needed
    return groups
