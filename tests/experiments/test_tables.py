"""No number of a table is cut, however narrow the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kd_lightning.experiments.tables import tables

HEADINGS = [
    "run",
    "seeds",
    "test accuracy",
    "a rather long heading of several words",
    "errors",
]
LINES = [
    ["student-alone", "5", "67.20 ± 0.60%", "1.0000 ± 0.1234", "3280.3 ± 60.4"],
    ["a name of many words", "1", "", "2", "7"],
]


def shown(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables("Title", HEADINGS, LINES, width):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "parts"), [(120, 1), (60, 2), (40, 4)])
def test_columns_move_to_another_table_uncut(width: int, parts: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("┏") == parts
    assert text.count("Title") == 1
    assert text.count("student-alone") == parts
    for cell in (cell for line in LINES for cell in line[1:]):
        assert cell in text
    assert "…" not in text
