"""Reads and writes the results of a mutation run, and makes their table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from mutants import Mutant

OUTCOMES = ("killed", "survived", "timeout")


class Row(TypedDict):
    """One line of the results: the mutant's fields and how its tests ended."""

    name: str
    path: str
    kind: str
    line: int
    before: str
    after: str
    outcome: str
    seconds: float
    by: str


def rows(path: Path) -> list[Row]:
    """The results of a file, the last one of each mutant; none if there is no file."""
    if not path.is_file():
        return []
    latest: dict[str, Row] = {}
    for line in path.read_text().splitlines():
        row: Row = json.loads(line)
        latest[row["name"]] = row
    return list(latest.values())


def add(path: Path, mutant: Mutant, outcome: str, seconds: float, by: str) -> None:
    """Append the result of a mutant to a file."""
    row: Row = {
        "name": mutant.name,
        "path": mutant.path,
        "kind": mutant.kind,
        "line": mutant.line,
        "before": mutant.before,
        "after": mutant.after,
        "outcome": outcome,
        "seconds": seconds,
        "by": by,
    }
    with path.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def table(results: Sequence[Row]) -> str:
    """Counts per file and in total, as a table in Markdown."""
    by_file: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for row in results:
        file = row["path"].removeprefix("kd_lightning/")
        by_file.setdefault(file, Counter())[row["outcome"]] += 1
        total[row["outcome"]] += 1
    lines = [
        "| file | mutants | killed | survived | timeout |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for file in sorted(by_file):
        lines.append(_line(file, by_file[file]))
    lines.append(_line("all", total))
    return "\n".join(lines)


def _line(name: str, counts: Counter[str]) -> str:
    cells = [name, str(counts.total())]
    for outcome in OUTCOMES:
        cells.append(str(counts[outcome]))
    return f"| {' | '.join(cells)} |"
