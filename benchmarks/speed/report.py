"""The rows of a comparison's results, as JSON and as a table."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from rich.console import Console
from rich.table import Table
from timings import Timings


class Row(TypedDict):
    """One measured quantity.

    `value` is a median. `low` and `high` bound its 95% interval if it is a ratio, else they are the
    least and the greatest value. `asked` is the target as text, `ms` the medians of both sides.
    """

    workload: str
    asked: str
    value: float
    low: float
    high: float
    unit: str
    rounds: int
    dropped: int
    ms: NotRequired[dict[str, float]]


def ratio_row(timings: Timings, workload: str, a: str, b: str, target: str = "") -> Row:
    """The ratio of the times of two workloads.

    Args:
        timings: timings of both.
        workload: name of the row.
        a: name of the workload in the numerator.
        b: name of the workload in the denominator.
        target: the target as text, if there is one.
    """
    median, low, high = timings.ratio(a, b)
    return {
        "workload": workload,
        "asked": target,
        "value": median,
        "low": low,
        "high": high,
        "unit": "ratio",
        "ms": {name: 1000 * timings.median(name) for name in (a, b)},
        "rounds": len(timings.seconds[a]),
        "dropped": timings.dropped,
    }


def value_row(
    workload: str, values: list[float], unit: str, dropped: int, target: str
) -> Row:
    """A quantity with one value per round.

    Args:
        workload: name of the row.
        values: the values.
        unit: their unit.
        dropped: number of dropped rounds.
        target: the target as text.
    """
    # Not an interval of the median: a single quantity has no partner in its round to cancel noise.
    ordered = sorted(values)
    return {
        "workload": workload,
        "asked": target,
        "value": ordered[len(ordered) // 2],
        "low": ordered[0],
        "high": ordered[-1],
        "unit": unit,
        "rounds": len(ordered),
        "dropped": dropped,
    }


def print_table(rows: list[Row], threads: int) -> None:
    """Print the rows as a table."""
    table = Table(
        title=f"{threads} CPU threads, medians with 95% intervals of paired ratios (or range)"
    )
    for heading in ("workload", "target", "measured", "interval"):
        justify: Literal["left", "right"] = "left" if heading == "workload" else "right"
        table.add_column(heading, justify=justify)
    for row in rows:
        measured = f"{row['value']:.3f} {row['unit']}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(row["workload"], row["asked"], measured, interval)
    Console(width=130).print(table)
