"""Runs what is missing of an experiment, side by side where asked, and continues what was interrupted."""

from __future__ import annotations

import gc
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import difference
from kd_lightning.experiments.planning import Job, Settings, by_run
from kd_lightning.experiments.workers import Board, Workers
from kd_lightning.runs.folder import read_json, write_json

Launch = Callable[[list[str]], Any]


def execute(job: Job, launch: Launch) -> None:
    """Run one job to its end, from where it was."""
    try:
        _execute(job, launch)
    except UserError:
        if not job.finished:  # it may have diverged, where that is what is looked for
            raise
    finally:
        gc.collect()  # a run's trainer, networks and data refer to each other, and are too few objects to be collected soon


def _execute(job: Job, launch: Launch) -> None:
    if job.finished:  # by another run of the same key
        return
    if job.is_cache:
        started = time.monotonic()
        launch(job.argv)  # which goes on where it was
        size = sum(path.stat().st_size for path in job.folder.glob("*.bin"))
        took = round(time.monotonic() - started, 3)
        write_json(
            job.folder / "run.json",
            {"status": "finished", "wall_time_s": took, "metrics": {"cache_bytes": size}},
        )
    elif job.checkpoint.is_file():
        launch([*job.argv, f"--ckpt_path={job.checkpoint}"])
    else:
        shutil.rmtree(job.folder, ignore_errors=True)  # nothing was finished there
        launch(job.argv)


class Runner:
    """Runs the jobs of a plan.

    Args:
        settings: where, and how many at once.
        launch: runs `kd` arguments to the end; jobs side by side run the same in processes of their own.
        console: where progress goes.
    """

    def __init__(self, settings: Settings, launch: Launch, console: Console) -> None:
        self.settings, self.launch, self.console = settings, launch, console
        self._state_path = settings.output / "jobs.json"
        self._state = read_json(self._state_path)

    def run(self, jobs: list[Job]) -> None:
        """Train every job that is not finished, those that others need first."""
        todo = [job for job in jobs if not job.finished]
        if len(todo) < len(jobs):
            self.console.print(
                f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished already", highlight=False
            )
        self._explain(todo)
        self._seconds = {
            name: [float(job.record.get("wall_time_s", 0)) for job in group if job.finished]
            for name, group in by_run(jobs).items()
        }
        self._left = list(todo)
        if self.settings.workers > 1 and len(todo) > 1:
            self._side_by_side(todo)
            return
        for job in todo:
            begun = time.monotonic()
            execute(job, self.launch)
            self._done(job, len(todo), time.monotonic() - begun)

    def _side_by_side(self, todo: list[Job]) -> None:
        waiting, folders = list(todo), {job.folder for job in todo}
        begun: dict[str, float] = {}
        with (
            Workers(min(self.settings.workers, len(todo))) as workers,
            Board(self.console, len(todo)) as board,
        ):
            while waiting or workers.busy:
                for job in list(waiting):
                    running = [other.folder for other in workers.busy]
                    ready = (
                        folders.isdisjoint(need.folder for need in job.needs)
                        and job.folder not in running
                    )
                    if workers.free and ready:
                        waiting.remove(job)
                        workers.start(job)
                        begun[str(job.folder)] = time.monotonic()
                board.show(workers.busy)
                for job in workers.wait(seconds=1.0):
                    folders.discard(job.folder)
                    board.finished(job)
                    self._done(job, len(todo), time.monotonic() - begun[str(job.folder)])

    def _done(self, job: Job, total: int, seconds: float) -> None:
        self._left.remove(job)
        self._seconds[job.run].append(seconds)
        count = total - len(self._left)
        errors = job.record.get("metrics", {}).get("test_errors")
        said = f"{errors:.0f} test errors, " if errors is not None else ""
        self.console.print(
            f"\\[{count:>{len(str(total))}}/{total}] {job.run}, seed {job.seed}: {said}{seconds:.1f} s"
            + (f"; about {_duration(self._time_left())} left" if self._left else ""),
            highlight=False,
        )
        self._state[f"{job.run}/{job.seed}"] = {"address": job.folder.name, "key": job.key}
        write_json(self._state_path, self._state)

    def _time_left(self) -> float:
        """By what runs of the same name took; where none was seen, by the mean of all."""
        mean = statistics.fmean([s for times in self._seconds.values() for s in times] or [0.0])
        each = (
            statistics.fmean(self._seconds[job.run]) if self._seconds[job.run] else mean
            for job in self._left
        )
        return sum(each) / self.settings.workers

    def _explain(self, todo: list[Job]) -> None:
        """Say once a run why what was finished is run again."""
        said = set()
        for job in todo:
            earlier = self._state.get(f"{job.run}/{job.seed}", {})
            if earlier and earlier["address"] != job.folder.name and job.run not in said:
                said.add(job.run)
                self.console.print(
                    f"{job.run} is run again: {difference(earlier['key'], job.key)}",
                    highlight=False,
                )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
