"""Plots what `kd benchmark` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")

LATENCY = "p50_ms_batch_1"

Row = Mapping[str, float | str | None]


def plotted_metric(rows: Sequence[Row]) -> str:
    """The test metric that most networks have; accuracy, if several are equally common.

    Raises:
        UserError: if no network has a test metric.
    """
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("test_") and isinstance(value, float | int):
                counts[name] = counts.get(name, 0) + 1
    if not counts:
        raise UserError(
            "--plot needs a test metric, and no network has one; test the runs with kd "
            "test, or "
            "train them with --run.test=last"
        )
    most = max(counts.values())
    common = sorted(name for name, count in counts.items() if count == most)
    return "test_accuracy" if "test_accuracy" in common else common[0]


def check_path(path: Path) -> None:
    """Refuse a file in another format, before anything is measured.

    Raises:
        UserError: for another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot must end in {', '.join(SUFFIXES)}, got {path}")


def plot_metric_against_latency(rows: Sequence[Row], path: Path) -> None:
    """Plot one point per network: its latency at batch 1 (ms), and its test metric.

    Args:
        rows: of the table of `kd benchmark`.
        path: of the PNG, SVG or PDF file.

    Raises:
        UserError: if no network has a test metric.
    """
    import matplotlib

    # The plot is only saved, and a machine may have no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = plotted_metric(rows)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        _plot_network(axes, row, metric)
    axes.set_xscale("log")
    axes.set_xlabel("latency of one sample, median (ms)")
    axes.set_ylabel(metric.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_network(axes: Axes, row: Row, metric: str) -> None:
    """Plot one network as a point with its name, if it has both numbers."""
    latency_ms = row.get(LATENCY)
    value = row.get(metric)
    if not isinstance(latency_ms, float | int) or not isinstance(value, float | int):
        return
    axes.plot(latency_ms, value, "o")
    label = f"{row['network']}\n{row['kind']}"
    # A dollar sign would begin a formula.
    axes.annotate(
        label.replace("$", r"\$"),
        (latency_ms, value),
        xytext=(6, 4),
        textcoords="offset points",
        fontsize=8,
    )
