"""Processes that run jobs side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self, cast

from kd_lightning.errors import UserError
from kd_lightning.experiments.execution import execute
from kd_lightning.experiments.planning import Job


def _launch_quietly(argv: list[str]) -> Any:
    from kd_lightning.runs.command import execute as launch

    if argv[0] == "fit":
        argv = [*argv, "--trainer.enable_progress_bar=false"]
    return launch(argv)


def _work(pipe: Connection, threads: int) -> None:
    """Run the jobs that arrive through the pipe, until None arrives.

    For each job, the pipe returns a description of its failure, or None if it succeeded.
    """
    import torch

    torch.set_num_threads(threads)
    # A process in the background ignores interrupts unless it asks for them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while (job := pipe.recv()) is not None:
        problem: str | None = None
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                execute(job, _launch_quietly)
        except UserError as error:
            problem = str(error)
        except KeyboardInterrupt:
            return
        except Exception as error:
            # Only the parent process reports errors.
            problem = f"{type(error).__name__}: {error}"
        pipe.send(problem)


class Workers:
    """Processes that each run one job at a time, as a context manager.

    Each process has as many threads as this one, because the number of threads is part of the
    runs' keys.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, SpawnProcess] = {}
        self._jobs: dict[Connection, Job] = {}
        for _ in range(count):
            parent_end, worker_end = context.Pipe()
            arguments = (worker_end, torch.get_num_threads())
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            worker_end.close()
            self._processes[parent_end] = process

    def __enter__(self) -> Self:
        return self

    @property
    def running(self) -> list[Job]:
        """The jobs that run now."""
        return list(self._jobs.values())

    @property
    def has_idle(self) -> bool:
        """Whether a process is free to take a job."""
        return len(self._jobs) < len(self._processes)

    def start(self, job: Job) -> None:
        """Give a job to an idle process."""
        idle_pipes = [pipe for pipe in self._processes if pipe not in self._jobs]
        pipe = idle_pipes[0]
        self._jobs[pipe] = job
        pipe.send(job)

    def wait(self, seconds: float) -> list[Job]:
        """Wait until a job ends, at most for that time, and return the jobs that ended.

        Raises:
            UserError: if a job failed. The others are stopped, and resume the next time.
        """
        ended = []
        # A pipe of this process is always a Connection, but `wait` accepts other objects too.
        ready = cast(list[Connection], wait(list(self._jobs), timeout=seconds))
        for pipe in ready:
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
        for pipe, process in self._processes.items():
            if pipe in self._jobs and process.pid is not None:
                # An interrupted run keeps its last checkpoint.
                os.kill(process.pid, signal.SIGINT)
            else:
                with contextlib.suppress(OSError):
                    pipe.send(None)
        for process in self._processes.values():
            process.join(timeout=30)
            process.kill()
