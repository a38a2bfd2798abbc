"""What a finished run prints."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kd_lightning.escaping import plain
from kd_lightning.runs.launch import RunResult
from kd_lightning.training.distillation import DistillationModule

_ORDER = ("test_", "val_", "train_")
"""How the names of metrics start, in the order of the table; the others follow."""


def report(command: str, result: RunResult) -> None:
    """Print the metrics of a run and the files that it wrote.

    Args:
        command: "fit", "validate", "test" or "predict".
        result: of the run.
    """
    console = Console()
    if result.metrics:
        title = plain(str(result.folder), "table.title")
        table = Table(title=title, title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name in sorted(result.metrics, key=_position):
            value = result.metrics[name]
            shown = f"{value:.6g}"
            # A count has no fraction, and no exponent.
            if name.endswith("errors"):
                shown = f"{value:.0f}"
            table.add_row(plain(name), shown)
        console.print(table)
    module = result.module
    if isinstance(module, DistillationModule) and module.teacher_note:
        console.print(plain(f"evaluated without the teacher: {module.teacher_note}"))
    if command == "fit":
        for checkpoint in _checkpoints(result.folder):
            console.print(plain(checkpoint), soft_wrap=True)
    # The task decides in which formats it writes predictions.
    if command == "predict":
        for file in sorted(result.folder.glob("predictions.*")):
            console.print(plain(f"predictions: {file}"), soft_wrap=True)


def _position(metric: str) -> tuple[int, str]:
    """The place of a metric in the table: test before validation before training metrics."""
    for position, start in enumerate(_ORDER):
        if metric.startswith(start):
            return position, metric
    return len(_ORDER), metric


def _checkpoints(folder: Path) -> list[str]:
    """One line per checkpoint of a run; that of the best epoch says which epoch it is."""
    lines = []
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        lines.append(f"checkpoint: {last}")
    best = folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        # Mapped into memory, so that no weights are read.
        content = torch.load(best, mmap=True, map_location="cpu", weights_only=True)
        lines.append(f"best validation: {best}, after epoch {content['epoch'] + 1}")
    return lines
