"""The table of `kd compare` in all of its formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_lightning.compare.baseline import difference_cell
from kd_lightning.compare.latex import latex_table
from kd_lightning.escaping import markdown, plain
from kd_lightning.experiments.measurements import ResultRow
from kd_lightning.experiments.report import (
    ROW_COLUMNS,
    Cells,
    csv_fields,
    csv_text,
    join_numbers,
    markdown_table,
    table_cells,
)
from kd_lightning.experiments.stats import Comparison

_UNLIMITED_WIDTH = 1000
_TEXT_WIDTH = 88
"""Paragraphs are wrapped here, in files and pipes too: a note may have a hundred words."""

_COMPARISON_COLUMNS = {
    "baseline": "b",
    "difference_mean": "mean",
    "difference_low": "low",
    "difference_high": "high",
    "difference_p": "p",
    "difference_p_holm": "p_holm",
}
"""Columns of the CSV, and the attribute of a Comparison that each one holds."""


@dataclass
class ComparisonTable:
    """What `kd compare` prints.

    Attributes:
        rows: one per group and metric.
        comparisons: tests of the first metric against the baseline.
        notes: explanations, one sentence each.
    """

    rows: list[ResultRow]
    comparisons: list[Comparison]
    notes: list[str]

    @property
    def sentences(self) -> list[str]:
        """The results of the tests in words, and the notes; each of them once."""
        tests = [f"{comparison.sentence()}." for comparison in self.comparisons]
        return list(dict.fromkeys([*tests, *self.notes]))

    def cells(self) -> Cells:
        """The table, with the differences to the baseline as its last column.

        In a transposed table, they are the last line.
        """
        headings, lines = table_cells(self.rows)
        if not self.comparisons:
            return Cells(headings, lines)
        heading = f"difference from {self.comparisons[0].b}"
        differences = {}
        for comparison in self.comparisons:
            differences[comparison.a] = difference_cell(comparison)
        # The second column is "seeds" unless each run has a column.
        is_transposed = headings[1] != "seeds"
        if is_transposed:
            last_line = [heading]
            for run in headings[1:]:
                # The baseline itself has no difference.
                last_line.append(differences.get(run, ""))
            return Cells(headings, [*lines, last_line])
        extended = []
        for line in lines:
            difference = differences.get(line[0], "")
            extended.append([*line, difference])
        return Cells([*headings, heading], extended)


def as_terminal_text(table: ComparisonTable) -> str:
    """The table as the terminal shows it; its full width if the output is a file or a pipe."""
    return table_text(table.cells(), table.sentences)


def table_text(cells: Cells, sentences: Sequence[str] = ()) -> str:
    """A table and sentences below it as the terminal shows them.

    Args:
        cells: of the table.
        sentences: one paragraph each.
    """
    from rich.console import Console

    from kd_lightning.experiments.tables import tables

    # Files and pipes get tables of any width: only a screen needs them split.
    terminal = Console()
    is_terminal = terminal.is_terminal
    text = io.StringIO()
    console = Console(
        file=text,
        width=terminal.width if is_terminal else _UNLIMITED_WIDTH,
        force_terminal=is_terminal,
        markup=False,
    )
    for part in tables(None, cells.headings, cells.lines, console.width):
        console.print(part)
    for sentence in sentences:
        console.print(
            plain(sentence), highlight=False, width=min(console.width, _TEXT_WIDTH)
        )
    return text.getvalue()


def as_markdown(table: ComparisonTable) -> str:
    """The table and its sentences as Markdown."""
    paragraphs = [
        "\n".join(markdown_table(*table.cells())),
        "Mean ± standard deviation over seeds.",
        *map(markdown, table.sentences),
    ]
    return "\n\n".join(paragraphs) + "\n"


def as_csv(table: ComparisonTable) -> str:
    """One line per row; values and seeds have the same order. A CSV has no notes."""
    tested = {}
    for comparison in table.comparisons:
        tested[comparison.a, comparison.metric] = comparison
    attributes = list(_COMPARISON_COLUMNS.values()) if tested else []
    lines = []
    for row in table.rows:
        fields = csv_fields(row)
        fields.append(join_numbers(row.get("seeds", [])))
        fields.append(join_numbers(row["values"]))
        # Only the rows of the first metric are compared.
        test = tested.get((row["run"], row["metric"]))
        values = test.as_dict() if test else {}
        fields += [values.get(attribute) for attribute in attributes]
        lines.append(fields)
    headings = [*ROW_COLUMNS, "seeds", "values"]
    if tested:
        headings += _COMPARISON_COLUMNS
    return csv_text(headings, lines)


def as_json(table: ComparisonTable) -> str:
    """The table in the form of results.json, with the notes."""
    comparisons = []
    for comparison in table.comparisons:
        texts = {"sentence": comparison.sentence(), "cell": difference_cell(comparison)}
        comparisons.append(comparison.as_dict() | texts)
    content = {"rows": table.rows, "comparisons": comparisons, "notes": table.notes}
    return json.dumps(content, indent=2) + "\n"


def as_latex(table: ComparisonTable) -> str:
    """The table for a paper, with the best value of each metric and its ties marked."""
    return latex_table(table.rows, table.sentences)


FORMATS: dict[str, Callable[[ComparisonTable], str]] = {
    "terminal": as_terminal_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
    "latex": as_latex,
}
"""The values of `--format`."""
