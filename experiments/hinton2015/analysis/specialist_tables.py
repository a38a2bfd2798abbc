"""The tables of the analysis of specialists, in Markdown, and the training cost that they show."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from kd_lightning.experiments.analysis import Finished, Runs
from kd_lightning.experiments.stats import Comparison
from kd_lightning.runs.folder import read_json

CONDITIONAL = "conditional_accuracy"

Values = Mapping[tuple[str, str], list[float]]
"""One value per seed, by run and metric."""

Coverage = dict[int, tuple[int, int, int]]
"""By the number of specialists that know a class: samples, correct before, correct after."""


@dataclass
class Cost:
    """The training cost of a kind of network, mean over seeds (and over specialists).

    Attributes:
        label: name of the network.
        samples: training samples seen, repetitions included.
        seconds: wall time of the run, evaluation included.
        count: how many of these networks one seed needs.
    """

    label: str
    samples: float
    seconds: float
    count: int = 1

    @classmethod
    def of(cls, label: str, group: Sequence[Finished], count: int = 1) -> Cost:
        """Average the cost of finished runs.

        Args:
            label: name of the network.
            group: the runs.
            count: how many of these networks one seed needs.
        """
        samples = []
        seconds = []
        for run in group:
            config = yaml.safe_load((run.folder / "config.yaml").read_text())
            record = read_json(run.folder / "run.json")
            epochs = config["trainer"]["max_epochs"]
            samples.append(float(epochs * record["data"]["samples"]["train"]))
            seconds.append(float(record["wall_time_s"]))
        return cls(label, statistics.fmean(samples), statistics.fmean(seconds), count)


def runs_of_grid(runs: Runs, run: str) -> list[Sequence[Finished]]:
    """Return the specialists of a run with a grid over `data.specialist`, each with all its seeds.

    Args:
        runs: the finished runs.
        run: the run's name before its grid.
    """
    pattern = re.compile(re.escape(run) + r" specialist=\d+")
    return [group for name, group in runs.items() if pattern.fullmatch(name)]


def training_cost(
    runs: Runs,
    generalist: str,
    specialists: str,
    longer: str | None,
    others: str | None,
    others_per_seed: int,
) -> list[Cost]:
    """Compute the cost of the generalist, of one of its specialists, and of the baselines.

    Args:
        runs: the finished runs.
        generalist: the generalist's run.
        specialists: the run with a grid over specialists.
        longer: the run of a generalist that is trained for longer, if any.
        others: the run of further generalists, if any.
        others_per_seed: how many further generalists one seed needs.
    """
    grid = runs_of_grid(runs, specialists)
    every_specialist = [run for group in grid for run in group]
    costs = [
        Cost.of(generalist, runs[generalist]),
        Cost.of("a specialist", every_specialist, len(grid)),
    ]
    if longer is not None:
        costs.append(Cost.of(longer, runs[longer]))
    if others is not None:
        costs.append(Cost.of(others, runs[others], others_per_seed))
    return costs


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
    lines += ["", "By how many specialists know the class of a sample:", ""]
    lines += _coverage_table(coverage)
    lines += ["What training costs, samples seen and seconds of a run:", ""]
    lines += _cost_table(costs)
    lines += ["Classes of each specialist (first seed):", ""]
    for number, names in enumerate(clusters):
        lines.append(f"{number}. {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table, with an empty line after it."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    lines = [f"| {' | '.join(row)} |" for row in [head, rule, *rows]]
    return [*lines, ""]


def _accuracy_table(values: Values, accuracy: str) -> list[str]:
    rows = []
    for run, metric in values:
        if metric == CONDITIONAL:
            conditional = _percent(values[run, CONDITIONAL])
            # A specialist by itself has no overall accuracy.
            overall = _percent(values[run, accuracy]) if (run, accuracy) in values else ""
            rows.append([run, conditional, overall])
    return _table(["system", "conditional", "overall"], rows)


def _percent(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent."""
    text = f"{100 * statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {100 * statistics.stdev(values):.1f}"
    return f"{text}%"


def _coverage_table(coverage: Sequence[Coverage]) -> list[str]:
    totals: dict[int, list[int]] = {}
    for seed in coverage:
        for count, numbers in seed.items():
            total = totals.setdefault(count, [0, 0, 0])
            for column, number in enumerate(numbers):
                total[column] += number
    rows = []
    for count in sorted(totals):
        samples, before, after = totals[count]
        gain = f"{100 * (after / before - 1):+.1f}%" if before else ""
        rows.append([str(count), str(samples), str(before), f"{after - before:+}", gain])
    head = ["specialists", "samples, all seeds", "generalist correct", "change", "relative gain"]
    return _table(head, rows)


def _cost_table(costs: Sequence[Cost]) -> list[str]:
    rows = []
    for cost in costs:
        samples = f"{cost.samples:,.0f}"
        samples_per_seed = f"{cost.count * cost.samples:,.0f}"
        seconds = f"{cost.seconds:.1f}"
        rows.append([cost.label, samples, seconds, str(cost.count), samples_per_seed])
    head = ["network", "samples", "seconds", "networks a seed", "samples a seed"]
    return _table(head, rows)
