"""The tables of the analysis of specialists, in Markdown."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from kd_lightning.experiments.analysis import Finished, Runs
from kd_lightning.experiments.stats import Comparison
from kd_lightning.runs.folder import read_json


@dataclass
class Cost:
    """What a network took to train, mean over seeds (and over specialists).

    Attributes:
        samples: training samples seen, repetitions counted.
        seconds: wall time of the run, evaluation included.
        count: how many of them one seed needs.
    """

    label: str
    samples: float
    seconds: float
    count: int = 1


def _seen(run: Finished) -> float:
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    return float(
        config["trainer"]["max_epochs"]
        * read_json(run.folder / "run.json")["data"]["samples"]["train"]
    )


def _cost(label: str, group: Sequence[Finished], count: int = 1) -> Cost:
    seconds = [float(read_json(run.folder / "run.json")["wall_time_s"]) for run in group]
    return Cost(label, statistics.fmean(map(_seen, group)), statistics.fmean(seconds), count)


def grid(runs: Runs, run: str) -> list[Sequence[Finished]]:
    """The specialists of a run with a grid over `data.specialist`, each with all its seeds."""
    return [
        group
        for name, group in runs.items()
        if re.fullmatch(re.escape(run) + r" specialist=\d+", name)
    ]


def training_cost(
    runs: Runs, generalist: str, specialists: str, longer: str | None, others: str | None, each: int
) -> list[Cost]:
    """The generalist, one of its specialists, and the baselines; of other generalists each seed needs `each`."""
    team = grid(runs, specialists)
    costs = [
        _cost(generalist, runs[generalist]),
        _cost("a specialist", [run for group in team for run in group], len(team)),
    ]
    costs += [_cost(longer, runs[longer])] if longer is not None else []
    costs += [_cost(others, runs[others], each)] if others is not None else []
    return costs


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}%"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)] + [""]


def report(
    values: Mapping[tuple[str, str], Sequence[float]],
    accuracy: str,
    tests: Sequence[Comparison],
    coverage: Sequence[Mapping[int, tuple[int, int, int]]],
    costs: Sequence[Cost],
    clusters: Sequence[Sequence[str]],
) -> str:
    """All tables.

    Args:
        values: by run and metric, a value for each seed.
        accuracy: the metric that is the overall accuracy.
        tests: shown as sentences.
        coverage: for each seed, by the number of specialists that know a class: samples, right before, right after.
        costs: of training.
        clusters: the names of each specialist's classes, of one seed.
    """
    runs = list(dict.fromkeys(run for run, metric in values if metric == "conditional_accuracy"))
    both = [
        [
            _percent(values[run, m]) if (run, m) in values else ""
            for m in ("conditional_accuracy", accuracy)
        ]
        for run in runs
    ]
    text = [
        "# Generalist and specialists",
        "",
        "Accuracy, mean and standard deviation over seeds.",
        "",
    ]
    text += _table(
        ["system", "conditional", "overall"],
        [[run, *cells] for run, cells in zip(runs, both, strict=True)],
    )
    text += [
        *(f"- {test.sentence()}." for test in tests),
        "",
        "By how many specialists know the class of a sample:",
        "",
    ]
    lines = []
    for count in sorted(set().union(*coverage)):
        samples, before, after = (
            sum(part)
            for part in zip(*(each[count] for each in coverage if count in each), strict=True)
        )
        gain = f"{100 * (after / before - 1):+.1f}%" if before else ""
        lines.append([str(count), str(samples), str(before), f"{after - before:+}", gain])
    text += _table(
        ["specialists", "samples, all seeds", "generalist correct", "change", "relative gain"],
        lines,
    )
    text += ["What training costs, samples seen and seconds of a run:", ""]
    text += _table(
        ["network", "samples", "seconds", "networks a seed", "samples a seed"],
        [
            [
                c.label,
                f"{c.samples:,.0f}",
                f"{c.seconds:.1f}",
                str(c.count),
                f"{c.count * c.samples:,.0f}",
            ]
            for c in costs
        ],
    )
    text += [
        "Classes of each specialist (first seed):",
        "",
        *(f"{at}. {', '.join(names)}" for at, names in enumerate(clusters)),
    ]
    return "\n".join(text) + "\n"
