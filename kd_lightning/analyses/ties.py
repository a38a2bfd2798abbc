"""Which runs few seeds cannot tell apart."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.experiments.analysis import Row, Runs


def tie_groups(
    runs: Runs, output: Path, metric: str, names: list[str], most: bool = False
) -> list[Row]:
    """Runs in groups between whose seeds there is a gap: 1 is the best; within a group nothing is said of the order.

    Two runs are tied where the ranges of their seeds, least to most, overlap, and where a chain of such runs joins them.

    Args:
        metric: by which they are compared.
        names: the runs.
        most: whether the most is the best; else the least is.
    """
    ranges = {}
    for name in names:
        values = [one.metrics[metric] * (-1 if most else 1) for one in runs[name]]
        ranges[name] = (min(values), max(values))
    group, reach = 0, float("-inf")
    rows = []
    for name in sorted(ranges, key=lambda name: ranges[name]):
        least, largest = ranges[name]
        group += least > reach
        reach = max(reach, largest)
        rows.append(Row(name, "tie_group", [float(group)]))
    return rows
