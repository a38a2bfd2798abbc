"""A small table of both kinds of columns, and the files that hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEADING = ["age", "city", "income", "species"]
CITIES = ("Aachen", "Bonn", "Celle")
SPECIES = ("cat", "dog")


def lines_of(count: int, seed: int = 0) -> list[list[str]]:
    """Rows of two numbers, a city and a species, without missing values."""
    drawn = np.random.default_rng(seed)
    lines = []
    for row in range(count):
        age = str(int(drawn.integers(1, 90)))
        income = repr(float(drawn.normal(50, 20)))
        lines.append([age, CITIES[row % 3], income, SPECIES[row % 2]])
    return lines


def write(path: Path, lines: list[list[str]], heading: list[str] | None = None) -> Path:
    """Write a CSV file."""
    rows = [heading or HEADING, *lines]
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path
