"""What a finished run prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kd_lightning.runs.launch import RunResult
from kd_lightning.training.distillation import DistillationModule


def report(command: str, result: RunResult) -> None:
    """Print the metrics of a run and the files that it wrote.

    Args:
        command: "fit", "validate", "test" or "predict".
        result: of the run.
    """
    console = Console()
    if result.metrics:
        table = Table(title=f"{result.folder}", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in sorted(result.metrics.items()):
            table.add_row(name, f"{value:.0f}" if name.endswith("errors") else f"{value:.6g}")
        console.print(table)
    module = result.module
    if isinstance(module, DistillationModule) and module.teacher_note:
        console.print(f"evaluated without the teacher: {module.teacher_note}")
    last = result.folder / "checkpoints" / "last.ckpt"
    if command == "fit" and last.is_file():
        console.print(f"checkpoint: {last}", soft_wrap=True)
    if command == "predict":
        for file in sorted(result.folder.glob("predictions.*")):
            console.print(f"predictions: {file}", soft_wrap=True)
