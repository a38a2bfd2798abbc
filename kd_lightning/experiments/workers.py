"""Processes that run jobs side by side, and a board that shows how far each is."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from kd_lightning.errors import UserError
from kd_lightning.experiments.planning import Job


def _work(pipe: Connection, threads: int) -> None:
    """Run the jobs that come through the pipe; imports happen once for all of them."""
    import torch

    from kd_lightning.experiments.runner import execute
    from kd_lightning.runs.command import execute as launch

    torch.set_num_threads(threads)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background inherits that it is ignored
    while (job := pipe.recv()) is not None:
        problem: str | None = None
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                execute(job, lambda argv: launch([*argv, *_QUIET] if argv[0] == "fit" else argv))
        except UserError as error:
            problem = str(error)
        except KeyboardInterrupt:
            return
        except Exception as error:  # it would be lost with this process
            problem = f"{type(error).__name__}: {error}"
        pipe.send(problem)


_QUIET = ("--trainer.enable_progress_bar=false",)


class Workers:
    """As many processes as asked, each with an equal share of this one's threads; each runs one job at a time."""

    def __init__(self, count: int) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        self._pipes: dict[Any, Any] = {}
        self._jobs: dict[Any, Job] = {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            # The parent's thread count is the one in the runs' keys.
            process = context.Process(
                target=_work, args=(theirs, torch.get_num_threads()), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes[ours] = process

    def __enter__(self) -> Self:
        return self

    @property
    def busy(self) -> list[Job]:
        return list(self._jobs.values())

    @property
    def free(self) -> bool:
        return len(self._jobs) < len(self._pipes)

    def start(self, job: Job) -> None:
        pipe = next(pipe for pipe in self._pipes if pipe not in self._jobs)
        self._jobs[pipe] = job
        pipe.send(job)

    def wait(self, seconds: float) -> list[Job]:
        """Jobs that ended meanwhile.

        Raises:
            UserError: where one failed; the others are stopped, and go on the next time.
        """
        ended = []
        for pipe in cast(list[Any], wait(list(self._jobs), timeout=seconds)):
            job = self._jobs.pop(pipe)
            try:
                problem = pipe.recv()
            except EOFError:
                problem = "its process ended; was the machine out of memory?"
            if problem:
                raise UserError(f"{job.run}, seed {job.seed}: {problem}")
            ended.append(job)
        return ended

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe, process in self._pipes.items():
            if pipe in self._jobs:
                os.kill(process.pid, signal.SIGINT)  # it keeps its last checkpoint
            else:
                with contextlib.suppress(OSError):
                    pipe.send(None)
        for process in self._pipes.values():
            process.join(timeout=30)
            process.kill()


class Board:
    """On a terminal: a bar for all jobs, and one for each that runs, by the epochs in its metrics.csv."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._all = self._progress.add_task("runs", total=total)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def show(self, jobs: list[Job]) -> None:
        if self._progress.disable:
            return
        for job in jobs:
            name = str(job.folder)
            if name not in self._tasks:
                total = job.key.get("trainer.max_epochs")
                self._tasks[name] = self._progress.add_task(
                    f"  {job.run}, seed {job.seed}", total=total
                )
            rows = job.folder / "metrics.csv"
            with contextlib.suppress(OSError):
                self._progress.update(self._tasks[name], completed=rows.read_text().count("\n") - 1)

    def finished(self, job: Job) -> None:
        if task := self._tasks.pop(str(job.folder), None):
            self._progress.remove_task(task)
        self._progress.advance(self._all)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
