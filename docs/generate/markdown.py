"""Markdown tables whose cells may hold links and code."""

from __future__ import annotations

from collections.abc import Sequence


def cell(text: str) -> str:
    """Text that fits into a cell of a table: in one line, and without a bare pipe."""
    one_line = " ".join(text.split())
    # Code that was made for a cell has its pipes escaped already.
    return one_line.replace(r"\|", "|").replace("|", r"\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table.

    The tables of results escape all of Markdown, since the names of runs come from outside. Here
    cells hold links, and names come from the repository.

    Args:
        header: the names of the columns.
        rows: the cells of each row.
    """
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        lines.append(_line(row))
    return lines


def _line(cells: Sequence[str]) -> str:
    """One line of a table."""
    escaped = [cell(text) for text in cells]
    return f"| {' | '.join(escaped)} |"
