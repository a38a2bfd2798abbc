"""Processes that run jobs side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

from kd_lightning.errors import UserError
from kd_lightning.experiments.execution import execute
from kd_lightning.experiments.planning import Job

WATCH_EVERY_S = 1.0
"""How often a worker looks whether its parent process is alive, in seconds."""

STOP_WITHIN_S = 60.0
"""How long a worker without a parent may take to keep its last checkpoint, in seconds."""


class Ended(NamedTuple):
    """A job that a worker ended.

    Attributes:
        job: the job.
        problem: why it failed; `None` if it succeeded.
        notes: what was trained again, and why.
    """

    job: Job
    problem: str | None
    notes: list[str]


@dataclass
class _Answer:
    """What a worker sends when a job ends; see `Ended`."""

    problem: str | None = None
    notes: list[str] = field(default_factory=list)


def _launch_quietly(argv: list[str]) -> Any:
    from kd_lightning.runs.command import execute as launch

    if argv[0] == "fit":
        argv = [*argv, "--trainer.enable_progress_bar=false"]
    return launch(argv)


def _work(pipe: Connection, threads: int, parent: int) -> None:
    """Run the jobs that arrive through the pipe, until None arrives or the parent is gone.

    Args:
        pipe: brings jobs, and takes an `_Answer` for each.
        threads: of torch.
        parent: the process id of the parent.
    """
    # A process in the background ignores interrupts unless it asks for them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    # The parent, which reports everything, may be gone, or may interrupt the wait for a job.
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        import torch

        torch.set_num_threads(threads)
        while (job := pipe.recv()) is not None:
            pipe.send(_run(job))


def _run(job: Job) -> _Answer:
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _Answer(notes=execute(job, _launch_quietly))
    except UserError as error:
        return _Answer(str(error))
    except Exception as error:
        # Only the parent process reports errors.
        return _Answer(f"{type(error).__name__}: {error}")


def _watch_parent(parent: int) -> None:
    """Interrupt this process once its parent is gone, so that the run keeps its last checkpoint."""
    # Another process, such as init, adopts a child whose parent died.
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY_S)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(STOP_WITHIN_S)
    os._exit(1)


class Workers:
    """Processes that each run one job at a time, as a context manager.

    Each process has as many threads as this one, because the number of threads is part of the
    runs' keys.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self._processes: dict[Connection, SpawnProcess] = {}
        self._jobs: dict[Connection, Job] = {}
        for _ in range(count):
            self._add_process()

    def _add_process(self) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        parent_end, worker_end = context.Pipe()
        arguments = (worker_end, torch.get_num_threads(), os.getpid())
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
        # If the process has died, `wait` finds the end of its pipe.
        with contextlib.suppress(OSError):
            pipe.send(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Wait until a job ends, at most for that time, and return the jobs that ended."""
        ended = []
        # A pipe of this process is always a Connection, but `wait` accepts other objects too.
        pipes = list(self._jobs)
        ready = cast(list[Connection], wait(pipes, timeout=seconds))
        for pipe in ready:
            job = self._jobs.pop(pipe)
            try:
                answer: _Answer = pipe.recv()
            except (EOFError, OSError):
                answer = _Answer("its process ended; was the machine out of memory?")
                self._replace(pipe)
            ended.append(Ended(job, answer.problem, answer.notes))
        return ended

    def _replace(self, pipe: Connection) -> None:
        """Start a process in place of one that died."""
        process = self._processes.pop(pipe)
        process.kill()
        pipe.close()
        self._add_process()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe, process in self._processes.items():
            if pipe in self._jobs and process.pid is not None:
                # An interrupted run keeps its last checkpoint. The process may have just ended.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            else:
                with contextlib.suppress(OSError):
                    pipe.send(None)
        for process in self._processes.values():
            process.join(timeout=30)
            process.kill()
