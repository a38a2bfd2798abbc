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
    figure, axes = plt.subplots(figsize=(1.6 + 1.5 * len(shown), 4), layout="constrained")
    for at, row in enumerate(shown):
        colour = f"C{at}"
        count = len(row["values"])
        spread = [at - 0.18 + 0.24 * (i + 0.5) / count for i in range(count)]
        axes.plot(spread, row["values"], "o", color=colour, alpha=0.6, markersize=5)
        axes.errorbar(at + 0.22, row["mean"], yerr=row["std"] or 0, fmt="s", color=colour, capsize=4)
        if row["paper"] is not None:
            axes.hlines(row["paper"], at - 0.35, at + 0.35, color="black", linestyles="dashed", label="paper")
    axes.set_xticks(range(len(shown)), [row["run"] for row in shown])
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_title(experiment.title, fontsize=11)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[:1], labels[:1])
    figure.savefig(path, dpi=150)
    plt.close(figure)
