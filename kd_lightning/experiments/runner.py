"""Runs the unfinished jobs of an experiment, one after the other or side by side."""

from __future__ import annotations

import statistics
import time
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kd_lightning.experiments.board import Board
from kd_lightning.experiments.execution import Launch, execute
from kd_lightning.experiments.keys import changed_names, difference, is_code
from kd_lightning.experiments.planning import Job, RunnerOptions
from kd_lightning.experiments.store import record_acceptance
from kd_lightning.experiments.workers import Workers
from kd_lightning.runs.folder import read_json, write_json


class Runner:
    """Runs the jobs of a plan.

    Args:
        options: where to run them, and how many at once.
        launch: runs the arguments of `kd` to the end. Jobs that run side by side have their own
            launch function in their own processes.
        console: where to report progress.
    """

    def __init__(self, options: RunnerOptions, launch: Launch, console: Console) -> None:
        self.options = options
        self.launch = launch
        self.console = console
        # The jobs that this experiment finished, with their keys: `RUN/SEED` -> address, key.
        self._history_path = options.output / "jobs.json"
        self._history = read_json(self._history_path)

    def run(self, jobs: list[Job]) -> None:
        """Train every job that is not finished, each after the jobs that it needs.

        Raises:
            UserError: if a job fails.
        """
        self._accept(jobs)
        unfinished = [job for job in jobs if not job.finished]
        if len(unfinished) < len(jobs):
            count = len(jobs) - len(unfinished)
            self._print(f"{count} of {len(jobs)} runs are finished already")
        self._explain(unfinished)

        clock = Clock(jobs, unfinished, self.options.workers)
        if self.options.workers > 1 and len(unfinished) > 1:
            self._run_side_by_side(unfinished, clock)
        else:
            self._run_in_turn(unfinished, clock)

    def _run_in_turn(self, jobs: list[Job], clock: Clock) -> None:
        for job in jobs:
            started = time.monotonic()
            execute(job, self.launch)
            seconds = time.monotonic() - started
            self._finish(job, seconds, clock)

    def _run_side_by_side(self, jobs: list[Job], clock: Clock) -> None:
        waiting = list(jobs)
        # Jobs with equal keys share a folder, so folders identify what is still to be done.
        unfinished = {job.folder for job in jobs}
        started: dict[str, float] = {}
        worker_count = min(self.options.workers, len(jobs))
        with Workers(worker_count) as workers, Board(self.console, len(jobs)) as board:
            while waiting or workers.running:
                for job in list(waiting):
                    if workers.has_idle and _can_start(job, workers.running, unfinished):
                        waiting.remove(job)
                        workers.start(job)
                        started[job.name] = time.monotonic()
                board.show(workers.running)
                for job in workers.wait(seconds=1.0):
                    unfinished.discard(job.folder)
                    board.finish(job)
                    seconds = time.monotonic() - started[job.name]
                    self._finish(job, seconds, clock)

    def _finish(self, job: Job, seconds: float, clock: Clock) -> None:
        """Report a job that ended, and remember its key."""
        clock.finish(job, seconds)
        record = job.record
        count_name = record.get("task", {}).get("count", "errors")
        value = record.get("metrics", {}).get(f"test_{count_name}")
        result = "" if value is None else f"{value:g} test {count_name}, "
        # All counts have the same width, so that the lines below each other align.
        digits = len(str(clock.total))
        count = f"{clock.finished:>{digits}}/{clock.total}"
        left = ""
        if clock.unfinished:
            left = f"; about {_duration(clock.seconds_left())} left"
        # The backslash keeps rich from reading the brackets as markup.
        name = f"\\[{count}] {escape(job.run)}, seed {job.seed}"
        self._print(f"{name}: {result}{seconds:.1f} s{left}")
        self._history[job.name] = {"address": job.folder.name, "key": job.key}
        write_json(self._history_path, self._history)

    def _accept(self, jobs: list[Job]) -> None:
        """Note in each accepted run that it stands for the run of another key."""
        accepted = 0
        for job in jobs:
            if job.accepted_key is not None:
                record_acceptance(job.folder, job.accepted_key, job.key)
                accepted += 1
        if accepted:
            self._print(f"{accepted} finished runs of other code are kept (--keep-finished)")

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
            self._print(escape(f"{job.run} is run again: {reason}"))

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False)


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
