"""Plots of a run's grid: curves and a heatmap over two of its keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Row, Runs

_KEY = re.compile(r"(\w+)=(\[.*?\]|\S+)")

Curve = dict[float, list[float]]
"""The metric of each seed, by the value of the horizontal axis's key."""


@dataclass(frozen=True)
class Labels:
    """Texts of a plot.

    Attributes:
        x: label of the horizontal axis.
        line: the key whose values distinguish the lines.
        metric: the metric that is plotted.
    """

    x: str
    line: str
    metric: str

    @property
    def y(self) -> str:
        """Label of the vertical axis."""
        return self.metric.replace("_", " ")


def coordinates(name: str) -> dict[str, str]:
    """Read the grid's values from a run's name: `student hidden=[30, 30] temperature=2.0`."""
    # A value in brackets may contain spaces; every other value ends at the next space.
    pairs = _KEY.findall(name)
    return dict(pairs)


def curves(
    runs: Runs,
    output: Path,
    x: str,
    line: str,
    metric: str = "test_errors",
    label: str = "",
) -> list[Row]:
    """Plot a metric against one key of a grid, with one line per value of another key.

    Writes curves.png (mean and standard deviation over seeds) and heatmap.png (each line relative
    to its lowest mean).

    Args:
        runs: the finished runs.
        output: folder of the results.
        x: the key of the horizontal axis, as the runs' names contain it.
        line: the key whose values distinguish the lines.
        metric: the metric to plot.
        label: label of the horizontal axis; `x` by default.

    Returns:
        No rows.

    Raises:
        UserError: if no run's name contains both keys.
    """
    lines = _lines_of_grid(runs, x, line, metric)
    if not lines:
        names = ", ".join(runs)
        raise UserError(
            f"no run's name contains both {x}= and {line}=; the runs are {names}"
        )
    labels = Labels(label or x, line, metric)
    _plot_curves(lines, labels, output / "curves.png")
    _plot_heatmap(lines, labels, output / "heatmap.png")
    return []


def _lines_of_grid(runs: Runs, x: str, line: str, metric: str) -> dict[str, Curve]:
    """The curve of each value of the key `line`, from the names of the runs."""
    lines: dict[str, Curve] = {}
    for name, group in runs.items():
        point = coordinates(name)
        # Other runs of the experiment are no part of the grid.
        if x not in point or line not in point:
            continue
        values = []
        for run in group:
            # A seed lacks the metric if its training diverged.
            if metric in run.metrics:
                values.append(run.metrics[metric])
        curve = lines.setdefault(point[line], {})
        curve[float(point[x])] = values
    return lines


def _plot_curves(lines: dict[str, Curve], labels: Labels, path: Path) -> None:
    """One panel per line."""
    size = (3.4 * len(lines), 3.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(lines), squeeze=False)[0]
    for axes, (value, curve) in zip(panels, lines.items(), strict=True):
        _plot_curve(axes, curve)
        axes.set_xlabel(labels.x)
        axes.set_title(f"{labels.line} {value}", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(labels.y)
    figure.savefig(path, dpi=150)


def _plot_curve(axes: Axes, curve: Curve) -> None:
    """Mean and standard deviation over seeds, on a logarithmic horizontal axis."""
    points = sorted(curve)
    means = []
    deviations = []
    for point in points:
        values = curve[point]
        means.append(float(np.mean(values)))
        # A single seed has no deviation.
        deviation = 0.0
        if len(values) > 1:
            deviation = float(np.std(values, ddof=1))
        deviations.append(deviation)
    axes.errorbar(points, means, yerr=deviations, fmt="o-", capsize=3)
    axes.set_xscale("log")
    labels = [f"{point:g}" for point in points]
    # Many labels overlap unless they are small.
    font_size = 7 if len(points) > 8 else 9
    axes.set_xticks(points, labels, fontsize=font_size)
    # A logarithmic axis would label minor ticks too, which are no points of the grid.
    axes.minorticks_off()


def _means_of_cells(
    lines: dict[str, Curve], points: list[float]
) -> NDArray[np.float64]:
    """The mean over seeds at each point of each line, `(lines, points)`."""
    # A grid may have gaps, which stay NaN and are not colored.
    shape = (len(lines), len(points))
    means = np.full(shape, np.nan)
    for row, curve in enumerate(lines.values()):
        for column, point in enumerate(points):
            if point in curve:
                means[row, column] = np.mean(curve[point])
    return means


def _plot_heatmap(lines: dict[str, Curve], labels: Labels, path: Path) -> None:
    """One row per line. The color shows how far a mean is above the row's lowest mean."""
    all_points: set[float] = set()
    for curve in lines.values():
        all_points.update(curve)
    points = sorted(all_points)
    means = _means_of_cells(lines, points)
    lowest = np.nanmin(means, axis=1, keepdims=True)
    excess = means / lowest - 1

    width = 1.5 + 0.8 * len(points)
    height = 1.2 + 0.7 * len(lines)
    size = (width, height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(excess, cmap="viridis_r", aspect="auto")
    _write_cells(axes, means, excess)
    texts = [f"{point:g}" for point in points]
    axes.set_xticks(range(len(points)), texts)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.line)
    figure.colorbar(image, label=f"{labels.y}, above the row's best")
    figure.savefig(path, dpi=150)


def _write_cells(
    axes: Axes,
    means: NDArray[np.float64],
    excess: NDArray[np.float64],
) -> None:
    """Write each mean into its cell, in a color that is readable on the cell's own."""
    highest = np.nanmax(excess)
    half = 0.5 * highest
    for (row, column), mean in np.ndenumerate(means):
        if not np.isfinite(mean):
            continue
        text = f"{mean:.0f}" if mean >= 10 else f"{mean:.3g}"
        # The color map is dark at its upper end.
        is_dark = excess[row, column] > half
        color = "white" if is_dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=color)
