"""Plots of a run's grid: curves and a heatmap over two of its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Row, Runs

_KEY = re.compile(r"(\w+)=(\[.*?\]|\S+)")


def coordinates(name: str) -> dict[str, str]:
    """The grid's values in a run's name: `student hidden=[30, 30] temperature=2.0`."""
    return dict(_KEY.findall(name))


def curves(
    runs: Runs, output: Path, x: str, line: str, metric: str = "test_errors", label: str = ""
) -> list[Row]:
    """Mean and standard deviation of a metric against one key of the grid, a line for each value of another.

    Writes curves.png, and heatmap.png, which shows each line relative to its best.

    Args:
        x: the key of the horizontal axis, as it stands in the runs' names.
        line: the key that tells lines apart.
        metric: what is shown.
        label: of the horizontal axis; `x` where left out.
    """
    points: dict[str, dict[float, list[float]]] = {}
    for name, group in runs.items():
        at = coordinates(name)
        if x in at and line in at:
            points.setdefault(at[line], {})[float(at[x])] = [
                one.metrics[metric] for one in group if metric in one.metrics
            ]
    if not points:
        raise UserError(
            f"no run's name holds both {x}= and {line}=; the runs are {', '.join(runs)}"
        )
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    _curves(plt, points, output / "curves.png", (label or x, line, metric))
    _heatmap(plt, points, output / "heatmap.png", (label or x, line, metric))
    return []


def _curves(
    plt: Any, points: dict[str, dict[float, list[float]]], path: Path, names: tuple[str, str, str]
) -> None:
    figure, grid = plt.subplots(
        1, len(points), figsize=(3.4 * len(points), 3.4), layout="constrained", squeeze=False
    )
    for axes, (value, found) in zip(grid[0], points.items(), strict=True):
        at = sorted(found)
        mean = [float(np.mean(found[p])) for p in at]
        spread = [float(np.std(found[p], ddof=1)) if len(found[p]) > 1 else 0.0 for p in at]
        axes.errorbar(at, mean, yerr=spread, fmt="o-", capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(at, [f"{p:g}" for p in at], fontsize=7 if len(at) > 8 else 9)
        axes.minorticks_off()
        axes.set_xlabel(names[0])
        axes.set_title(f"{names[1]} {value}", fontsize=10)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel(names[2].replace("_", " "))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _heatmap(
    plt: Any, points: dict[str, dict[float, list[float]]], path: Path, names: tuple[str, str, str]
) -> None:
    at = sorted({p for found in points.values() for p in found})
    means = np.array(
        [
            [float(np.mean(found[p])) if p in found else np.nan for p in at]
            for found in points.values()
        ]
    )
    figure, axes = plt.subplots(
        figsize=(1.5 + 0.8 * len(at), 1.2 + 0.7 * len(points)), layout="constrained"
    )
    above = means / np.nanmin(means, axis=1, keepdims=True) - 1
    image = axes.imshow(above, cmap="viridis_r", aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        if np.isfinite(value):
            text = f"{value:.0f}" if value >= 10 else f"{value:.3g}"
            dark = above[row, column] > 0.5 * np.nanmax(above)
            axes.text(
                column, row, text, ha="center", va="center", color="white" if dark else "black"
            )
    axes.set_xticks(range(len(at)), [f"{p:g}" for p in at])
    axes.set_yticks(range(len(points)), list(points))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    figure.colorbar(image, label=f"{names[2].replace('_', ' ')}, above the row's best")
    figure.savefig(path, dpi=150)
    plt.close(figure)
