"""Tables of results as cells, Markdown and CSV; `kd reproduce` and `kd compare` share them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kd_lightning.errors import printable
from kd_lightning.escaping import markdown
from kd_lightning.experiments.measurements import ResultRow

ROW_COLUMNS = ("run", "metric", "paper", "mean", "std", "n")
"""The keys of a row that are one value, in the order of a CSV's columns."""

_MAX_COLUMNS = 7
_MAX_TRANSPOSED_RUNS = 5
HEADINGS = {
    "test_errors": "test errors",
    "test_accuracy": "test accuracy",
    "flops": "FLOPs",
    "file_bytes": "file, kB",
    "cache_bytes": "cache, kB",
    "latency_ms_batch_1": "CPU ms, batch 1",
    "latency_ms_batch_256": "CPU ms, batch 256",
}
"""Headings that are not simply the metric's name without underscores."""


class Cells(NamedTuple):
    """A table in text.

    Attributes:
        headings: one per column.
        lines: one per run; one per metric if the table is transposed.
    """

    headings: list[str]
    lines: list[list[str]]


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction that tables show in percent."""
    return "accuracy" in metric


def heading(metric: str) -> str:
    """The heading of a metric's column."""
    return HEADINGS.get(metric, metric.replace("_", " "))


def table_cells(rows: Sequence[ResultRow]) -> Cells:
    """Arrange rows as a table: one line per run, the paper's numbers beside ours.

    A wide table of few runs is transposed: one line per metric.
    """
    by_cell: dict[tuple[str, str], ResultRow] = {}
    # Dictionaries serve as sets that keep the order of the rows.
    runs: dict[str, None] = {}
    metrics: dict[str, None] = {}
    metrics_with_paper = set()
    for row in rows:
        run = row["run"]
        metric = row["metric"]
        runs[run] = None
        metrics[metric] = None
        by_cell[run, metric] = row
        # A column of the paper's numbers exists only if the paper gives one for this metric.
        if row["paper"] is not None:
            metrics_with_paper.add(metric)

    headings = ["run", "seeds"]
    for metric in metrics:
        headings.append(heading(metric))
        if metric in metrics_with_paper:
            headings.append(f"paper's {heading(metric)}")

    lines = []
    first_metric = next(iter(metrics), "")
    for run in runs:
        # The number of seeds is that of the first metric, since costs are measured once per run.
        first = by_cell.get((run, first_metric))
        line = [run, str(first["n"]) if first else ""]
        for metric in metrics:
            cell = by_cell.get((run, metric))
            # A run may lack a metric that others have.
            line.append(format_mean(cell) if cell else "")
            if metric in metrics_with_paper:
                line.append(_format_paper(cell) if cell else "")
        lines.append(line)

    is_wide = len(headings) > _MAX_COLUMNS
    # Many runs would make the transposed table as wide as the original.
    if is_wide and len(lines) <= _MAX_TRANSPOSED_RUNS:
        transposed = [list(column) for column in zip(headings, *lines, strict=True)]
        return Cells(transposed[0], transposed[1:])
    return Cells(headings, lines)


def format_mean(row: ResultRow) -> str:
    """Mean ± standard deviation in the precision that suits the metric.

    Args:
        row: a metric of a run.
    """
    metric = row["metric"]
    mean = row["mean"]
    if not math.isfinite(mean):
        count = sum(not math.isfinite(value) for value in row["values"])
        return f"not finite ({count} of {row['n']})"
    if metric in ("parameters", "flops"):
        return f"{mean:,.0f}"
    if metric.endswith("_bytes"):
        return f"{mean / 1000:,.1f}"
    if metric.startswith("latency"):
        return f"{mean:.3g}"
    if is_fraction(metric):
        return _format_spread(100 * mean, row["std"], 100, digits=2) + "%"
    if "errors" in metric:
        return _format_spread(mean, row["std"], 1, digits=1)
    # A count that all seeds share needs no decimals.
    if not row["std"] and mean.is_integer():
        return f"{mean:.0f}"
    return _format_spread(mean, row["std"], 1, digits=4)


def _format_spread(mean: float, std: float | None, scale: int, digits: int) -> str:
    """Mean ± standard deviation, which is multiplied by `scale`; the mean already is."""
    text = f"{mean:.{digits}f}"
    if std is None:
        return text
    return f"{text} ± {scale * std:.{digits}f}"


def _format_paper(row: ResultRow) -> str:
    """The paper's number as the paper prints it; empty if there is none."""
    paper = row["paper"]
    if paper is None:
        return ""
    if is_fraction(row["metric"]):
        return f"{100 * paper:g}%"
    return f"{paper:g}"


def markdown_table(
    headings: Sequence[str], lines: Sequence[Sequence[str]]
) -> list[str]:
    """The lines of a Markdown table, the first column left-aligned and all others right-aligned."""
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    text = []
    for line in [headings, ruler, *lines]:
        escaped = [markdown(cell) for cell in line]
        text.append("| " + " | ".join(escaped) + " |")
    return text


def csv_text(
    headings: Sequence[str],
    lines: Iterable[Sequence[str | float | None]],
    line_end: str = "\n",
) -> str:
    """A table as CSV; None becomes an empty field, and texts lose their control characters."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end)
    for line in [headings, *lines]:
        writer.writerow(
            [printable(cell) if isinstance(cell, str) else cell for cell in line]
        )
    return text.getvalue()


def csv_fields(row: ResultRow) -> list[str | float | None]:
    """The fields of a row in the order of ROW_COLUMNS."""
    return [
        row["run"],
        row["metric"],
        row["paper"],
        row["mean"],
        row["std"],
        row["n"],
    ]


def join_numbers(numbers: Iterable[float]) -> str:
    """Numbers as one CSV field, in full precision."""
    return " ".join(map(repr, numbers))
