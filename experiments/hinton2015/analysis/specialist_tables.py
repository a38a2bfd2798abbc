"""The tables of the analysis of specialists, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from kd_lightning.experiments.stats import Comparison

from .specialist_answers import Coverage
from .specialist_costs import Cost

CONDITIONAL = "conditional_accuracy"

Values = Mapping[tuple[str, str], list[float]]
"""One value per seed, by run and metric."""


def report(
    values: Values,
    accuracy: str,
    tests: Sequence[Comparison],
    coverage: Sequence[Coverage],
    costs: Sequence[Cost],
    clusters: Sequence[Sequence[str]],
) -> str:
    """Write all tables.

    Args:
        values: one value per seed, by run and metric.
        accuracy: the metric that is the overall accuracy.
        tests: comparisons, shown as sentences.
        coverage: the counts of each seed.
        costs: of training.
        clusters: the names of each specialist's classes, for one seed.
    """
    lines = [
        "# Generalist and specialists",
        "",
        "Accuracy, mean and standard deviation over seeds.",
        "",
        *_accuracy_table(values, accuracy),
    ]
    lines += [f"- {test.sentence()}." for test in tests]
    lines += ["", "By the number of specialists that know the class of a sample:", ""]
    lines += _coverage_table(coverage)
    lines += ["Training cost: samples seen, and seconds per run:", ""]
    lines += _cost_table(costs)
    lines += ["Classes of each specialist (first seed):", ""]
    for number, names in enumerate(clusters):
        lines.append(f"{number}. {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table, with an empty line after it."""
    # Text is aligned to the left, and numbers, in all other columns, to the right.
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = []
    for row in [head, rule, *rows]:
        cells = " | ".join(row)
        lines.append(f"| {cells} |")
    return [*lines, ""]


def _accuracy_table(values: Values, accuracy: str) -> list[str]:
    """One line per system, with its conditional and its overall accuracy."""
    rows = []
    for run, metric in values:
        if metric == CONDITIONAL:
            conditional = _percent(values[run, CONDITIONAL])
            # A specialist by itself has no overall accuracy.
            overall = ""
            if (run, accuracy) in values:
                overall = _percent(values[run, accuracy])
            rows.append([run, conditional, overall])
    return _table(["system", "conditional", "overall"], rows)


def _percent(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent."""
    text = f"{100 * statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {100 * statistics.stdev(values):.1f}"
    return f"{text}%"


def _coverage_table(coverage: Sequence[Coverage]) -> list[str]:
    """One line per number of specialists that know a sample's class, summed over seeds."""
    totals: dict[int, list[int]] = {}
    for seed in coverage:
        for count, numbers in seed.items():
            total = totals.setdefault(count, [0, 0, 0])
            for column, number in enumerate(numbers):
                total[column] += number
    rows = []
    for count in sorted(totals):
        samples, before, after = totals[count]
        # Relative to the generalist, which may have no such sample right.
        gain = ""
        if before:
            gain = f"{100 * (after / before - 1):+.1f}%"
        change = f"{after - before:+}"
        rows.append([str(count), str(samples), str(before), change, gain])
    head = [
        "specialists",
        "samples, all seeds",
        "generalist correct",
        "change",
        "relative gain",
    ]
    return _table(head, rows)


def _cost_table(costs: Sequence[Cost]) -> list[str]:
    """One line per kind of network."""
    rows = []
    for cost in costs:
        samples = f"{cost.samples:,.0f}"
        samples_per_seed = f"{cost.count * cost.samples:,.0f}"
        seconds = f"{cost.seconds:.1f}"
        rows.append([cost.label, samples, seconds, str(cost.count), samples_per_seed])
    head = ["network", "samples", "seconds", "networks per seed", "samples per seed"]
    return _table(head, rows)
