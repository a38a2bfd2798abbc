"""Plots of a comparison: a metric of each row, alone or against a cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError, printable
from kd_lightning.experiments.cost import measure_checkpoint
from kd_lightning.experiments.measurements import ResultRow, SeedGroup
from kd_lightning.experiments.plots import plot_row
from kd_lightning.experiments.report import heading, is_fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
"""The formats of a plot."""

COSTS = ("parameters", "flops", "file_bytes")
"""Costs that follow from a checkpoint alone; others were measured or are unknown."""

LEAST_RATIO = 10
"""From this ratio of the largest to the smallest cost, their axis is logarithmic."""

_POINT_HEIGHT = 4.2
"""Of a plot against a cost, in inches."""


@dataclass(frozen=True)
class Point:
    """A row of a comparison with the cost of its network.

    Attributes:
        row: the metric.
        cost: such as the number of parameters.
    """

    row: ResultRow
    cost: float


def check_plot_path(path: Path) -> None:
    """Refuse a file that no plot can be written to, before anything is read.

    Args:
        path: of the plot.

    Raises:
        UserError: for another suffix, or if the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--plot {path}: the suffix decides the format; "
            f"valid: {', '.join(SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: the folder {path.parent} does not exist")


def costs_of_groups(groups: Sequence[SeedGroup], cost: str) -> dict[str, float]:
    """A cost of each group's network, by the group's label.

    Args:
        groups: of a comparison; the seeds of a group share one network.
        cost: such as `parameters`.

    Raises:
        UserError: if the cost of a group is neither recorded nor can be counted.
    """
    costs = {}
    for group in groups:
        costs[group.label] = _cost_of_group(group, cost)
    return costs


def _cost_of_group(group: SeedGroup, cost: str) -> float:
    # Results of `kd reproduce` hold costs among the metrics of the first seed.
    for result in group.results:
        if cost in result.metrics:
            return result.metrics[cost]
    folder = group.results[0].folder
    if folder is None or not folder.checkpoint.is_file() or cost not in COSTS:
        raise UserError(
            f"--against {cost}: {group.label} has no record of it; results of kd "
            f"reproduce hold all costs, and checkpoints tell {', '.join(COSTS)}"
        )
    return measure_checkpoint(folder.checkpoint, batches=())[cost]


def write_plot(
    path: Path,
    rows: Sequence[ResultRow],
    against: str | None = None,
    costs: Mapping[str, float] | None = None,
) -> None:
    """Write a plot of a metric.

    Args:
        path: of the file; its suffix is one of `SUFFIXES`.
        rows: of one metric.
        against: the cost on the horizontal axis; None draws one line per row.
        costs: that cost of each row, by its label.

    Raises:
        UserError: if the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A dollar sign in the name of a run begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        height = _POINT_HEIGHT if against else height_of_rows(len(rows))
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        if against is None:
            axes.grid(axis="x", alpha=0.3)
            plot_rows(axes, rows)
        else:
            axes.grid(alpha=0.3)
            points = [Point(row, (costs or {})[row["run"]]) for row in rows]
            plot_points(axes, points, against)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise UserError(
                f"--plot {path} cannot be written ({error.strerror})"
            ) from error


def height_of_rows(count: int) -> float:
    """The height of a plot with so many rows, in inches.

    Args:
        count: of the rows.
    """
    return 1.1 + 0.34 * count


def plot_rows(axes: Axes, rows: Sequence[ResultRow]) -> None:
    """Plot one line per row: its seeds, their mean and its standard deviation.

    Args:
        axes: to draw on.
        rows: of one metric, at least one.
    """
    for position, row in enumerate(rows):
        plot_row(axes, position, row)
    names = [printable(row["run"]) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    # The axis is inverted, so that the first row is on top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(printable(heading(rows[0]["metric"])))
    _show_percent(axes, rows[0]["metric"], "x")
    # Every paper's value has its own entry, but one explains them all.
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:1], labels[:1])


def plot_points(axes: Axes, points: Sequence[Point], cost: str) -> None:
    """Plot one point per row against a cost, with its seeds and standard deviation.

    Args:
        axes: to draw on.
        points: of one metric, at least one.
        cost: their cost; its axis is logarithmic if they differ by a decade.
    """
    from matplotlib.ticker import FuncFormatter

    # The heading of a size is in kilobytes.
    unit = 1000 if cost.endswith("_bytes") else 1
    for number, point in enumerate(points):
        row = point.row
        color = f"C{number % 10}"
        size = point.cost / unit
        seeds = [size] * len(row["values"])
        axes.plot(seeds, row["values"], "o", color=color, alpha=0.35, markersize=4)
        axes.errorbar(
            size,
            row["mean"],
            yerr=row["std"] or 0,
            fmt="s",
            linestyle="none",
            color=color,
            markersize=5,
            capsize=3,
            label=printable(row["run"]),
        )
    costs = [point.cost / unit for point in points]
    # Networks of one size need no decades.
    if min(costs) > 0 and max(costs) / min(costs) >= LEAST_RATIO:
        axes.set_xscale("log")
        # Matplotlib's own labels of such an axis are formulas.
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    metric = points[0].row["metric"]
    axes.set_xlabel(printable(heading(cost)))
    axes.set_ylabel(printable(heading(metric)))
    _show_percent(axes, metric, "y")
    axes.legend(fontsize=8)


def _short_number(value: float, position: int) -> str:
    """A power of ten as the label of an axis."""
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:g}"


def _show_percent(axes: Axes, metric: str, which: str) -> None:
    """Label fractions in percent, as tables show them."""
    from matplotlib.ticker import PercentFormatter

    if not is_fraction(metric):
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0))
