"""Plots of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_lightning.experiments.spec import Experiment


def summary(experiment: Experiment, content: dict[str, Any], path: Path) -> None:
    """Every seed as a dot, mean and standard deviation beside them, the paper's number as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = experiment.metrics[0]
    shown = [row for row in content["rows"] if row["metric"] == metric]
    figure, axes = plt.subplots(figsize=(8, 1.1 + 0.34 * len(shown)), layout="constrained")
    for at, row in enumerate(shown):
        axes.plot(
            row["values"], [at] * len(row["values"]), "o", color="C0", alpha=0.45, markersize=5
        )
        axes.errorbar(
            row["mean"],
            at + 0.22,
            xerr=row["std"] or 0,
            fmt="s",
            color="C3",
            markersize=4,
            capsize=3,
        )
        if row["paper"] is not None:
            axes.vlines(
                row["paper"],
                at - 0.35,
                at + 0.35,
                color="black",
                linestyles="dashed",
                label="paper",
            )
    axes.set_yticks(range(len(shown)), [row["run"] for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)  # the first run on top
    axes.set_xlabel(metric.replace("_", " "))
    axes.set_title(experiment.title, fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:1], labels[:1])
    figure.savefig(path, dpi=150)
    plt.close(figure)
