"""Groups of runs that a few seeds cannot tell apart."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.experiments.analysis import Row, Runs
from kd_lightning.experiments.stats import tie_numbers


def tie_groups(
    runs: Runs,
    output: Path,
    metric: str,
    names: list[str],
    most: bool = False,
) -> list[Row]:
    """Number the tie groups of runs. Group 1 is the best, and the runs of a group are not ranked.

    Two runs are tied if the ranges of their seeds (lowest to highest value) overlap, or if a chain
    of overlapping runs connects them.

    Args:
        runs: the finished runs.
        output: unused.
        metric: the metric by which the runs are compared.
        names: the runs to compare.
        most: whether the highest value is the best, as for accuracies; by default it is the lowest.

    Returns:
        One row `tie_group` per run, the best run first.
    """
    # With this sign, lower is better for every metric.
    sign = -1 if most else 1
    ranges = {}
    for name in names:
        values = [sign * run.metrics[metric] for run in runs[name]]
        ranges[name] = (min(values), max(values))

    rows = []
    for name, group in tie_numbers(ranges).items():
        rows.append(Row(name, "tie_group", [float(group)]))
    return rows
