"""The table of `kd compare` for a paper in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_lowercase

from kd_lightning.compare.direction import is_cost, sign_of
from kd_lightning.escaping import latex
from kd_lightning.experiments.measurements import ResultRow
from kd_lightning.experiments.report import format_mean, heading
from kd_lightning.experiments.stats import tie_numbers


def latex_table(rows: Sequence[ResultRow], sentences: Sequence[str]) -> str:
    """A table with one line per run, with the rules of the package booktabs.

    The best mean of each metric is bold. Runs that a few seeds cannot tell apart carry
    the same letter: the ranges of their seeds overlap, or a chain of overlapping runs
    connects them.

    Args:
        rows: one per run and metric.
        sentences: printed below the table.
    """
    runs: dict[str, None] = {}
    metrics: dict[str, dict[str, ResultRow]] = {}
    for row in rows:
        runs[row["run"]] = None
        metrics.setdefault(row["metric"], {})[row["run"]] = row
    columns = []
    has_ties = False
    for metric, of_metric in metrics.items():
        letters = tie_letters(metric, of_metric)
        has_ties = has_ties or bool(letters)
        columns.append(_column(metric, of_metric, list(runs), letters))
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(rows, has_ties)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}",
        r"\toprule",
        _line(["run", "seeds", *(latex(heading(metric)) for metric in metrics)]),
        r"\midrule",
    ]
    first = next(iter(metrics.values()))
    for number, run in enumerate(runs):
        seeds = str(first[run]["n"]) if run in first else ""
        cells = [column[number] for column in columns]
        lines.append(_line([latex(run), seeds, *cells]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    for sentence in sentences:
        lines.append(rf"\par\smallskip{{\footnotesize {latex(sentence)}\par}}")
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _caption(rows: Sequence[ResultRow], has_ties: bool) -> str:
    """What the numbers and marks mean."""
    caption = "The best mean of each metric is bold."
    if any(row["n"] > 1 for row in rows):
        caption = rf"Mean $\pm$ standard deviation over seeds. {caption}"
    if has_ties:
        caption += (
            " Values of one metric with the same letter are tied and not ranked: the "
            "ranges of their seeds overlap, directly or through other rows."
        )
    if any(row["n"] == 1 and not is_cost(row["metric"]) for row in rows):
        caption += " Values of a single seed have no spread and say little about ranks."
    return caption


def tie_letters(metric: str, rows: Mapping[str, ResultRow]) -> dict[str, str]:
    """A letter for each run that is tied with another one.

    Args:
        metric: whose values are compared.
        rows: the metric of each run.

    Returns:
        None of the runs, if it is not known which values of the metric are better.
    """
    sign = sign_of(metric)
    # A cost has no seeds.
    if sign is None or is_cost(metric):
        return {}
    # A diverged seed has no place in a range.
    ranges = {}
    for run, row in rows.items():
        values = [sign * value for value in row["values"]]
        if all(map(math.isfinite, values)):
            ranges[run] = (min(values), max(values))
    numbers = tie_numbers(ranges)
    # A run that is tied with no other needs no letter.
    sizes: dict[int, int] = {}
    for number in numbers.values():
        sizes[number] = sizes.get(number, 0) + 1
    letters: dict[str, str] = {}
    letter_of_group: dict[int, str] = {}
    for run, number in numbers.items():
        if sizes[number] < 2:
            continue
        position = len(letter_of_group) % len(ascii_lowercase)
        letters[run] = letter_of_group.setdefault(number, ascii_lowercase[position])
    return letters


def best_runs(metric: str, rows: Mapping[str, ResultRow]) -> set[str]:
    """The runs with the best mean; several only if their means are equal.

    Args:
        metric: whose values are compared.
        rows: the metric of each run.
    """
    sign = sign_of(metric)
    means = {}
    for run, row in rows.items():
        if math.isfinite(row["mean"]):
            means[run] = row["mean"]
    # A single value is not the best of anything.
    if sign is None or len(means) < 2:
        return set()
    best = min(sign * mean for mean in means.values())
    return {run for run, mean in means.items() if sign * mean == best}


def _column(
    metric: str,
    rows: Mapping[str, ResultRow],
    runs: Sequence[str],
    letters: Mapping[str, str],
) -> list[str]:
    """The cells of a metric, one per run."""
    best = best_runs(metric, rows)
    cells = []
    for run in runs:
        if run not in rows:
            cells.append("")
            continue
        text = latex(format_mean(rows[run]))
        if run in best:
            # \boldmath also reaches the sign of the deviation, which is a formula.
            text = rf"{{\boldmath\textbf{{{text}}}}}"
        if run in letters:
            text += rf"\textsuperscript{{{letters[run]}}}"
        cells.append(text)
    return cells
