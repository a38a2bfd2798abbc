"""Tables of committed results inside hand-written pages.

A line `<!-- results: EXPERIMENT [RUN, RUN, ...] -->` of a page becomes the table of that
experiment, so that no number is copied by hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from docs.generate.markdown import table as markdown_table
from docs.generate.papers import measured
from experiments.methods import Results
from kd_lightning.experiments.report import heading

MARKER = re.compile(r"^<!-- results: (\S+)(?: \[(.*)\])? -->$", re.MULTILINE)
METRICS = ("test_errors", "test_accuracy")


def with_tables(markdown: str, results: Sequence[Results]) -> str:
    """The text with its markers replaced by tables.

    Args:
        markdown: of a page.
        results: all committed results.

    Raises:
        ValueError: if a marker names an experiment or a run without results.
    """

    def table(match: re.Match[str]) -> str:
        runs = []
        for name in (match[2] or "").split(","):
            if name.strip():
                runs.append(name.strip())
        return "\n".join(results_table(match[1], runs, results))

    return MARKER.sub(table, markdown)


def results_table(
    name: str, runs: Sequence[str], results: Sequence[Results]
) -> list[str]:
    """The lines of the table of an experiment, the fewest test errors first.

    Args:
        name: of the experiment, such as crd2020/cifar100.
        runs: the runs to show; all if empty.
        results: all committed results.

    Raises:
        ValueError: if there are no such results.
    """
    for result in results:
        if result.name == name:
            return _table(result, runs)
    raise ValueError(f"a page shows {name}, which has no committed results")


def _table(result: Results, runs: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(run for run, _ in result.cells))
    missing = sorted(set(runs) - set(known))
    if missing:
        raise ValueError(f"{result.name} has no run {missing[0]!r}; its runs: {known}")
    shown = list(runs) or known

    def errors(run: str) -> float:
        return float(result.cells[run, METRICS[0]]["mean"])

    shown.sort(key=errors)
    rows = []
    for run in shown:
        cells = [run]
        for metric in METRICS:
            row = result.cells.get((run, metric))
            cells.append("" if row is None else measured(row, metric))
        rows.append(cells)
    return markdown_table(["run", *map(heading, METRICS)], rows)
