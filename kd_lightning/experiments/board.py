"""Progress bars of jobs that run side by side."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from kd_lightning.experiments.planning import Job


class Board:
    """One bar for all jobs, and one bar per running job that counts its epochs.

    Shows nothing if the console is not a terminal.

    Args:
        console: where to show the bars.
        total: number of jobs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all_jobs = self._progress.add_task("runs", total=total)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def show(self, jobs: list[Job]) -> None:
        """Update the bars of running jobs."""
        # Without a terminal, reading the files of all jobs would be wasted.
        if self._progress.disable:
            return
        for job in jobs:
            bar = self._bar(job)
            # Each epoch adds a row below the heading. The file appears after the first epoch.
            with contextlib.suppress(OSError):
                text = (job.folder / "metrics.csv").read_text()
                lines = text.count("\n")
                self._progress.update(bar, completed=lines - 1)

    def _bar(self, job: Job) -> TaskID:
        """The bar of a job, added when the job is first seen running."""
        name = str(job.folder)
        if name not in self._bars:
            epochs = job.key.get("trainer.max_epochs")
            description = f"  {job.run}, seed {job.seed}"
            self._bars[name] = self._progress.add_task(description, total=epochs)
        return self._bars[name]

    def finish(self, job: Job) -> None:
        """Remove a job's bar and count the job as finished."""
        bar = self._bars.pop(str(job.folder), None)
        if bar is not None:
            self._progress.remove_task(bar)
        self._progress.advance(self._all_jobs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
