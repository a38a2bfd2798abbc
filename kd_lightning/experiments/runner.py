"""Runs the unfinished jobs of an experiment, one after the other or side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain
from kd_lightning.experiments.board import Board
from kd_lightning.experiments.execution import Launch, execute
from kd_lightning.experiments.keys import changed_names, difference, is_code
from kd_lightning.experiments.planning import Job, RunnerOptions
from kd_lightning.experiments.store import record_acceptance
from kd_lightning.experiments.workers import Workers
from kd_lightning.runs.folder import read_json, write_json

_SHOWN = 4
"""A summary names this many failed jobs."""


@dataclass
class Failure:
    """A job that failed.

    Attributes:
        job: the job.
        error: why, in one line.
    """

    job: Job
    error: str


def summary(failures: Sequence[Failure], total: int) -> str:
    """One line about the jobs that failed; the first one is named with its error.

    Args:
        failures: at least one.
        total: the number of jobs.
    """
    first = failures[0]
    line = f"{len(failures)} of {total} runs failed: {first.job.run}, seed {first.job.seed}: "
    line += first.error
    others = []
    for failure in failures[1:_SHOWN]:
        others.append(f"{failure.job.run}, seed {failure.job.seed}")
    if others:
        line += f"; also {'; '.join(others)}"
    if len(failures) > _SHOWN:
        line += f" and {len(failures) - _SHOWN} more"
    return line


class Runner:
    """Runs the jobs of a plan.

    Args:
        options: where to run them, and how many at once.
        launch: runs the arguments of `kd` to the end. Jobs that run side by side have their own
            launch function in their own processes.
        console: where to report progress.
    """

    def __init__(
        self,
        options: RunnerOptions,
        launch: Launch,
        console: Console,
    ) -> None:
        self.options = options
        self.launch = launch
        self.console = console
        # The jobs that this experiment finished, with their keys: `RUN/SEED` -> address, key.
        self._history_path = options.output / "jobs.json"
        self._history = read_json(self._history_path)
        self.failures: list[Failure] = []
        """The jobs that failed or could not start."""
        # The folders of the jobs that were not finished at the start.
        self._unfinished: set[Path] = set()

    def run(self, jobs: list[Job]) -> list[Failure]:
        """Train every job that is not finished, each after the jobs that it needs.

        A job that fails does not stop the others, but those that need it.

        Returns:
            The jobs that failed or could not start.
        """
        self._accept(jobs)
        unfinished = [job for job in jobs if not job.finished]
        self._unfinished = {job.folder for job in unfinished}
        if len(unfinished) < len(jobs):
            count = len(jobs) - len(unfinished)
            self._print(f"{count} of {len(jobs)} runs are finished already")
        self._explain(unfinished)

        due = _due(jobs)
        clock = Clock(jobs, due, self.options.workers)
        if self.options.workers > 1 and len(due) > 1:
            self._run_side_by_side(due, clock)
        else:
            self._run_in_turn(due, clock)
        return self.failures

    def _run_in_turn(self, jobs: list[Job], clock: Clock) -> None:
        for job in jobs:
            if self._needs_no_run(job, clock):
                continue
            started = time.monotonic()
            try:
                notes = execute(job, self.launch)
            except UserError as error:
                self._fail(job, str(error), clock)
                continue
            except Exception as error:
                # An error of the job's own code stops no other job either.
                self._fail(job, f"{type(error).__name__}: {error}", clock)
                continue
            seconds = time.monotonic() - started
            self._finish(job, seconds, clock, notes)

    def _run_side_by_side(self, jobs: list[Job], clock: Clock) -> None:
        waiting = list(jobs)
        # Jobs with equal keys share a folder, so folders identify what is still to be done.
        unfinished = {job.folder for job in jobs}
        started: dict[str, float] = {}
        worker_count = min(self.options.workers, len(jobs))
        with Workers(worker_count) as workers, Board(self.console, len(jobs)) as board:
            while waiting or workers.running:
                for job in list(waiting):
                    if not _can_start(job, workers.running, unfinished):
                        continue
                    if self._needs_no_run(job, clock):
                        waiting.remove(job)
                        unfinished.discard(job.folder)
                        board.finish(job)
                    elif workers.has_idle:
                        waiting.remove(job)
                        workers.start(job)
                        started[job.name] = time.monotonic()
                board.show(workers.running)
                for job, problem, notes in workers.wait(seconds=1.0):
                    board.finish(job)
                    # Jobs that need a failed one are refused when their turn comes.
                    unfinished.discard(job.folder)
                    if problem is not None:
                        self._fail(job, problem, clock)
                        continue
                    seconds = time.monotonic() - started[job.name]
                    self._finish(job, seconds, clock, notes)

    def _needs_no_run(self, job: Job, clock: Clock) -> bool:
        """Whether a job is finished after all, or cannot start because another one failed."""
        failed = {}
        for failure in self.failures:
            failed[failure.job.folder] = failure.job
        # Jobs with equal keys are the same run.
        for need in (job, *job.needs):
            if need.folder in failed:
                culprit = failed[need.folder]
                reason = f"not run, because {culprit.run}, seed {culprit.seed} failed"
                self._fail(job, reason, clock)
                return True
        if job.finished and job.folder not in self._unfinished:
            clock.skip(job)
            return True
        return False

    def _fail(self, job: Job, problem: str, clock: Clock) -> None:
        """Report a job that failed; the others go on."""
        clock.skip(job)
        one_line = " ".join(problem.split())
        self.failures.append(Failure(job, one_line))
        self._print(f"{job.run}, seed {job.seed} failed: {one_line}", wrap=False)

    def _finish(self, job: Job, seconds: float, clock: Clock, notes: list[str]) -> None:
        """Report a job that ended, and remember its key."""
        for note in notes:
            self._print(f"{job.run}, seed {job.seed}: {note}", wrap=False)
        clock.finish(job, seconds)
        name = f"[{clock.count}] {job.run}, seed {job.seed}"
        left = ""
        if clock.unfinished:
            left = f"; about {_duration(clock.seconds_left())} left"
        self._print(f"{name}: {_test_result(job)}{seconds:.1f} s{left}")
        # After each job, because an interrupted experiment must not lose them.
        entry = {"address": job.folder.name, "key": job.key}
        self._history[job.name] = entry
        write_json(self._history_path, self._history)

    def _accept(self, jobs: list[Job]) -> None:
        """Note in each accepted run that it stands for the run of another key."""
        accepted = 0
        for job in jobs:
            if job.accepted_key is not None:
                record_acceptance(job.folder, job.accepted_key, job.key)
                accepted += 1
        if accepted:
            self._print(
                f"{accepted} finished runs of other code are kept (--keep-finished)"
            )

    def _explain(self, unfinished: list[Job]) -> None:
        """Report for each run, once for all seeds, why it is trained again."""
        explained = set()
        for job in unfinished:
            earlier = self._history.get(job.name)
            if not earlier or job.run in explained:
                continue
            # With an equal key, the finished run was deleted, and no difference explains it.
            if earlier["address"] == job.folder.name:
                continue
            explained.add(job.run)
            earlier_key = earlier["key"]
            reason = difference(earlier_key, job.key)
            changed = changed_names(earlier_key, job.key)
            if all(map(is_code, changed)):
                reason += "; --keep-finished keeps finished runs of other code"
            self._print(f"{job.run} is run again: {reason}")

    def _print(self, text: str, wrap: bool = True) -> None:
        self.console.print(plain(text), soft_wrap=not wrap)


class Clock:
    """Counts the jobs that are finished and estimates how long the others take.

    Args:
        jobs: all jobs of the plan; those that are finished tell how long a run takes.
        unfinished: the jobs that are to be run.
        workers: number of jobs that run side by side.
    """

    def __init__(self, jobs: list[Job], unfinished: list[Job], workers: int) -> None:
        self.total = len(unfinished)
        self.unfinished = list(unfinished)
        self._workers = workers
        self._seconds: dict[str, list[float]] = {}
        for job in jobs:
            seconds = self._seconds.setdefault(job.run, [])
            if job.finished:
                seconds.append(float(job.record.get("wall_time_s", 0)))

    @property
    def finished(self) -> int:
        """How many of the jobs that were to be run have finished."""
        return self.total - len(self.unfinished)

    @property
    def count(self) -> str:
        """The number of finished jobs and of all jobs, such as " 3/12"."""
        # All counts have the same width, so that the lines below each other align.
        digits = len(str(self.total))
        return f"{self.finished:>{digits}}/{self.total}"

    def skip(self, job: Job) -> None:
        """Count a job that failed as done."""
        self.unfinished.remove(job)

    def finish(self, job: Job, seconds: float) -> None:
        """Count a job as finished after that time."""
        self.unfinished.remove(job)
        self._seconds[job.run].append(seconds)

    def seconds_left(self) -> float:
        """Estimate the remaining time from finished seeds of the same run, else from all runs."""
        all_seconds = list(chain.from_iterable(self._seconds.values()))
        # Before the first run ends, there is nothing to estimate from.
        mean = statistics.fmean(all_seconds) if all_seconds else 0.0
        total = 0.0
        for job in self.unfinished:
            same_run = self._seconds[job.run]
            total += statistics.fmean(same_run) if same_run else mean
        return total / self._workers


def _test_result(job: Job) -> str:
    """The number of test errors, or what the task counts, with a comma; empty without a test."""
    record = job.record
    task = record.get("task", {})
    count_name = task.get("count", "errors")
    metrics = record.get("metrics", {})
    value = metrics.get(f"test_{count_name}")
    if value is None:
        return ""
    return f"{value:g} test {count_name}, "


def _due(jobs: list[Job]) -> list[Job]:
    """The jobs that are not finished, and those that may change because one that they need does.

    Args:
        jobs: each after the jobs that it needs.
    """
    due: list[Job] = []
    folders: set[Path] = set()
    for job in jobs:
        if not job.finished or any(need.folder in folders for need in job.needs):
            due.append(job)
            folders.add(job.folder)
    return due


def _can_start(job: Job, running: list[Job], unfinished: set[Path]) -> bool:
    """Return whether a job has all that it needs, and whether no other job writes its folder.

    Args:
        job: a job that waits.
        running: the jobs that run now.
        unfinished: the folders of jobs that are not finished.
    """
    for need in job.needs:
        if need.folder in unfinished:
            return False
    # Jobs with equal keys share a folder.
    return all(other.folder != job.folder for other in running)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
