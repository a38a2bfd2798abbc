"""Tables in the terminal: where one is too wide, its columns are shown in several, none of them cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.table import Table

_BORDER = 3
"""Columns of the terminal between two cells."""


def tables(
    title: str | None, headings: Sequence[str], lines: Sequence[Sequence[str]], width: int
) -> Iterator[Table]:
    """Tables of at most `width` columns of the terminal; each begins with the first column, headings wrap between words."""
    widths = [
        max(cell_len(text) for text in [*heading.split(), *(line[at] for line in lines), ""])
        for at, heading in enumerate(headings)
    ]
    widths[0] = min(widths[0], width // 2)  # names wrap
    groups: list[list[int]] = [[]]
    room = width - widths[0] - _BORDER - 1
    left = room
    for at in range(1, len(headings)):
        if groups[-1] and left < widths[at] + _BORDER:
            groups.append([])
            left = room
        groups[-1].append(at)
        left -= widths[at] + _BORDER
    for number, group in enumerate(groups):
        table = Table(title=None if number else title, title_justify="left")
        table.add_column(headings[0], overflow="fold")
        for at in group:
            table.add_column(headings[at], justify="right", min_width=widths[at], overflow="fold")
        for line in lines:
            table.add_row(line[0], *(line[at] for at in group))
        yield table
