"""Plots of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.experiments.measurements import ResultRow
from kd_lightning.experiments.spec import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def summary(experiment: Experiment, rows: Sequence[ResultRow], path: Path) -> None:
    """Plot the first metric of every run: seeds, mean, standard deviation and the paper's value.

    Args:
        experiment: the experiment.
        rows: the rows of its results.
        path: the PNG file to write.
    """
    import matplotlib

    # The plot is only saved, and a machine may have no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = experiment.metrics[0]
    plotted = [row for row in rows if row["metric"] == metric]
    size = (8, 1.1 + 0.34 * len(plotted))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    for position, row in enumerate(plotted):
        plot_row(axes, position, row)
    names = [row["run"] for row in plotted]
    axes.set_yticks(range(len(plotted)), names)
    # The axis is inverted, so that the first run is on top.
    axes.set_ylim(len(plotted) - 0.4, -0.6)
    axes.set_xlabel(metric.replace("_", " "))
    axes.set_title(experiment.title, fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Every paper's value has its own entry, but one explains them all.
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:1], labels[:1])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_row(axes: Axes, position: int, row: ResultRow) -> None:
    """Plot one run: dots for its seeds, a square for their mean, a line for the paper's value.

    Args:
        axes: to draw on; runs are below each other.
        position: of the run, from 0.
        row: the metric of the run.
    """
    import matplotlib

    heights = [position] * len(row["values"])
    axes.plot(row["values"], heights, "o", color="C0", alpha=0.45, markersize=5)
    spread = row["std"] or 0
    axes.errorbar(
        row["mean"],
        position + 0.22,
        xerr=spread,
        fmt="s",
        color="C3",
        markersize=4,
        capsize=3,
    )
    if row["paper"] is not None:
        axes.vlines(
            row["paper"],
            position - 0.35,
            position + 0.35,
            color=matplotlib.rcParams["text.color"],
            linestyles="dashed",
            label="paper",
        )
