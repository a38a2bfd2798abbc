"""The index of papers: each with its config and the numbers that we reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from docs.generate.markdown import table
from docs.generate.methods import page_name, paper_link
from experiments.methods import Method, Results, result_lines
from kd_lightning.experiments.report import heading, is_fraction

INTRODUCTION = """\
# Index of papers

Generated from the losses and the committed results. Every number is a mean over seeds with its
standard deviation; the experiment's page has each seed, the commit and the hardware. "not run" means
that the method is implemented and tested, and that no committed result uses it.

## Numbers next to the papers'

These runs follow a paper's experiment, so that its number stands next to ours.
"""


def papers_page(methods: Sequence[Method], results: Sequence[Results]) -> str:
    """The page.

    Args:
        methods: all methods.
        results: all committed results.
    """
    lines = [INTRODUCTION]
    lines += table(
        ["experiment", "run", "metric", "paper's", "ours"], _next_to(results)
    )
    lines += ["", "## Methods by year", ""]
    rows = []
    for method in sorted(methods, key=lambda each: (each.cls.year, each.name.lower())):
        if method.cls.paper:
            rows.append(_row(method, results))
    lines += table(["paper", "method", "config", "our results"], rows)
    lines.append("")
    return "\n".join(lines)


def _next_to(results: Sequence[Results]) -> list[list[str]]:
    """The rows of results for which the paper's number is known."""
    rows = []
    for result in results:
        for (run, metric), row in result.cells.items():
            if row.get("paper") is None:
                continue
            link = f"[{result.name}](experiments/{result.path}/results.md)"
            rows.append(
                [
                    link,
                    run,
                    heading(metric),
                    number(row["paper"], metric),
                    measured(row, metric),
                ]
            )
    return rows


def number(value: float | str, metric: str) -> str:
    """A paper's number as text."""
    if isinstance(value, str):
        return value
    return f"{100 * value:.2f}%" if is_fraction(metric) else f"{value:g}"


def measured(row: dict[str, float], metric: str) -> str:
    """Mean, standard deviation and seeds of a row of results."""
    factor = 100 if is_fraction(metric) else 1
    digits = 2 if is_fraction(metric) else 1
    # Rates such as a word error rate are small numbers without a unit.
    if not is_fraction(metric) and abs(row["mean"]) < 1:
        digits = 4
    unit = "%" if is_fraction(metric) else ""
    text = f"{factor * row['mean']:.{digits}f}"
    if row["std"] is not None:
        text += f" ± {factor * row['std']:.{digits}f}"
    return f"{text}{unit} (n = {row['n']:.0f})"


def _row(method: Method, results: Sequence[Results]) -> list[str]:
    """The row of a method."""
    configs = []
    for config in method.configs:
        configs.append(f"[{Path(config).name}]({config})")
    reached = []
    for experiment, run, metric, value, _ in result_lines(method, results):
        reached.append(f"{experiment}, {run}: {value} {metric}")
    return [
        paper_link(method.cls.paper),
        f"[{method.name}]({page_name(method)})",
        ", ".join(configs),
        "; ".join(reached) or "not run",
    ]
