"""Learning curves: of one run, and of groups of runs with bands over their seeds."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError, printable
from kd_lightning.report.blocks import Figure
from kd_lightning.report.figures import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

AXIS_HEIGHT = 1.9
"""Of one curve's axes, in inches."""

Series = Mapping[float, float]
"""The value of a metric by epoch, in order."""

Curves = Mapping[str, Series]
"""The series of each metric that has several values."""


def read_curves(path: Path) -> Curves:
    """Read the metrics that a run logged in several epochs.

    Args:
        path: of the run's metrics.csv.

    Raises:
        UserError: if the file cannot be read.
    """
    curves: dict[str, dict[float, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                epoch = float(row.pop("epoch"))
                for name, cell in row.items():
                    # An empty cell is a metric that this epoch does not have.
                    if cell:
                        curves.setdefault(name, {})[epoch] = float(cell)
    except FileNotFoundError as error:
        raise UserError("the run's folder has no metrics.csv") from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"metrics.csv cannot be read: {error}") from error
    curves.pop("step", None)
    # One value makes no curve, such as a test metric.
    several = {}
    for name, series in curves.items():
        if len(series) > 1:
            several[name] = series
    return several


@dataclass(frozen=True)
class Line:
    """One line of a plot; with several seeds, their mean and a band around it.

    Attributes:
        label: in the legend.
        epochs: `n` numbers.
        means: the value at each epoch.
        deviations: the standard deviation over seeds; empty with one seed.
    """

    label: str
    epochs: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float] = ()

    def in_words(self) -> str:
        """The first and the last value, for the text alternative."""
        first = f"{self.means[0]:.4g}"
        return f"{self.label} goes from {first} to {self.means[-1]:.4g}"


def line_over_seeds(label: str, seeds: Sequence[Series]) -> Line | None:
    """Summarize the series of several seeds at the epochs that all of them have.

    Args:
        label: in the legend.
        seeds: one series per seed.

    Returns:
        None if there are fewer than two such epochs with finite values.
    """
    # Seeds may have stopped at different epochs.
    shared = set(seeds[0])
    for series in seeds[1:]:
        shared &= set(series)
    epochs = []
    means = []
    deviations = []
    for epoch in sorted(shared):
        values = [series[epoch] for series in seeds]
        # A gap in the line shows where a seed diverged.
        if not all(map(math.isfinite, values)):
            continue
        epochs.append(epoch)
        means.append(statistics.fmean(values))
        if len(values) > 1:
            deviations.append(statistics.stdev(values))
    if len(epochs) < 2:
        return None
    return Line(label, epochs, means, deviations)


def figure_of_run(label: str, curves: Curves, monitor: str) -> Figure | None:
    """The losses of a run in one plot, and its validation metrics in one plot each.

    Args:
        label: of the run.
        curves: of the run.
        monitor: the metric that selects the best checkpoint.

    Returns:
        None if no metric has a curve.
    """
    losses = [name for name in curves if name.startswith("train_loss")]
    # The total loss comes before its terms: its name is the shortest.
    losses.sort(key=len)
    chosen = {"training loss, total and terms before weighting": losses}
    for name in (*_validation_metrics(monitor), "learning_rate"):
        chosen[_in_words(name)] = [name]
    plots: dict[str, list[Line]] = {}
    for title, names in chosen.items():
        for name in names:
            line = line_over_seeds(name, [curves[name]]) if name in curves else None
            if line is not None:
                plots.setdefault(title, []).append(line)
    return _figure(f"Learning curves of {label}", plots)


def _validation_metrics(monitor: str) -> list[str]:
    """The validation metrics that plots show."""
    names = [f"val_{monitor}", "val_nll", "val_teacher_agreement"]
    return list(dict.fromkeys(names))


def _in_words(name: str) -> str:
    return name.replace("val_", "validation_").replace("_", " ")


def figure_of_groups(
    groups: Mapping[str, Sequence[Curves]],
    monitor: str,
    caption: str = "",
) -> Figure | None:
    """Compare groups of runs: one plot per metric, one line per group.

    Args:
        groups: the curves of each seed, by the group's label.
        monitor: the metric that selects the best checkpoint.
        caption: below the figure.

    Returns:
        None if no metric has a curve.
    """
    plots: dict[str, list[Line]] = {}
    for metric in ("train_loss", *_validation_metrics(monitor)):
        for label, seeds in groups.items():
            measured = [curves[metric] for curves in seeds if metric in curves]
            line = line_over_seeds(label, measured) if measured else None
            if line is not None:
                plots.setdefault(_in_words(metric), []).append(line)
    return _figure("Learning curves", plots, caption)


def _figure(
    what: str,
    plots: Mapping[str, Sequence[Line]],
    caption: str = "",
) -> Figure | None:
    """Plots below each other."""
    if not plots:
        return None
    described = []
    for title, lines in plots.items():
        words = ", ".join(line.in_words() for line in lines)
        described.append(f"{title}: {words}")
    alternative = f"{what}. {'; '.join(described)}."

    def plot(drawing: Drawing) -> None:
        rows = drawing.subplots(len(plots), 1, squeeze=False)
        for axes, (title, lines) in zip(rows[:, 0], plots.items(), strict=True):
            _plot_lines(axes, title, lines)
        rows[-1, 0].set_xlabel("epoch")

    return draw(AXIS_HEIGHT * len(plots), alternative, plot, caption)


def _plot_lines(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    # Half an epoch is no tick.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for line in lines:
        label = printable(line.label)
        [drawn] = axes.plot(line.epochs, line.means, label=label, linewidth=1.5)
        if line.deviations:
            pairs = list(zip(line.means, line.deviations, strict=True))
            low = [mean - deviation for mean, deviation in pairs]
            high = [mean + deviation for mean, deviation in pairs]
            color = drawn.get_color()
            axes.fill_between(line.epochs, low, high, color=color, alpha=0.2, lw=0)
    axes.set_title(title)
    if len(lines) > 1:
        axes.legend(fontsize=8)
