"""Runs what is missing of an experiment, one job a run and seed, and continues what was interrupted."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import address, difference, run_key
from kd_lightning.experiments.spec import Experiment, RunSpec
from kd_lightning.runs.folder import read_json, write_json

Launch = Callable[[list[str]], Any]


@dataclass
class Job:
    """One run with one seed.

    Attributes:
        run: its name in the experiment.
        seed: its seed.
        key: what decides its result.
        folder: where it is kept, named by the key's address.
        argv: what `kd` is given.
        needs: jobs that come first.
    """

    run: str
    seed: int
    key: dict[str, Any]
    folder: Path
    argv: list[str]
    needs: list[Job]

    @property
    def record(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json")

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @property
    def is_cache(self) -> bool:
        return self.argv[0] == "cache"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def product(self) -> Path:
        """What other runs need of this one."""
        return self.folder if self.is_cache else self.checkpoint

    @property
    def command(self) -> str:
        return shlex.join(["kd", *self.argv])


@dataclass
class Settings:
    """How an experiment is run, beyond what its YAML says."""

    output: Path
    store: Path
    seeds: int
    overrides: dict[str, Any]


def format_override(key: str, value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    )
    return f"--{key}={text}"


def plan(experiment: Experiment, settings: Settings) -> list[Job]:
    """All jobs, those that others need first."""
    jobs: dict[tuple[str, int], Job] = {}
    keys: dict[str, dict[str, Any]] = {}

    def add(run: RunSpec, seed: int, above: tuple[str, ...] = ()) -> Job:
        if run.name in above:
            raise UserError(f"the experiment's runs need each other in a circle: {' -> '.join([*above, run.name])}")
        if (run.name, seed) not in jobs:
            needs = {}
            for key, wanted in run.needs.items():
                name, _, fixed = wanted.partition("@")
                needs[key] = add(experiment.run(name), int(fixed or seed), (*above, run.name))
            jobs[run.name, seed] = _job(experiment, run, seed, needs, settings, keys)
        return jobs[run.name, seed]

    for run in experiment.runs:
        for seed in run.seeds if run.seeds is not None else range(settings.seeds):
            add(run, seed)
    return list(jobs.values())


def _job(
    experiment: Experiment, run: RunSpec, seed: int, needs: dict[str, Job], settings: Settings, keys: dict[str, dict[str, Any]]
) -> Job:
    overrides = {"run.test": "last", **experiment.overrides, **run.overrides, **settings.overrides}
    configs = [part for name in [*experiment.configs, *run.configs] for part in ("-c", name)]
    argv = [*configs, *(format_override(k, v) for k, v in overrides.items())]
    # One parse serves all seeds; what a run needs enters by its address, never by its path.
    if run.name not in keys:
        keys[run.name] = run_key(["fit", *argv, *(f"--{name}=needed" for name in needs)])
    key = {**keys[run.name], **{name: job.folder.name for name, job in needs.items()}, "seed": seed}
    key |= {f"cache.{name}": value for name, value in (run.cache or {}).items()}
    folder = settings.store / address(key)
    argv += [f"--seed_everything={seed}", *(f"--{name}={job.product}" for name, job in needs.items())]
    if run.cache is None:
        argv = ["fit", *argv, f"--run.dir={folder}", f"--run.group={experiment.name}"]
    else:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in run.cache.items()]
        argv = ["cache", *argv, *options, f"--output={folder}"]
    return Job(run.name, seed, key, folder, argv, list(needs.values()))


class Runner:
    """Runs the jobs of a plan.

    Args:
        launch: runs `kd` arguments to the end.
        console: where progress goes.
    """

    def __init__(self, settings: Settings, launch: Launch, console: Console) -> None:
        self.settings, self.launch, self.console = settings, launch, console
        self._state_path = settings.output / "jobs.json"

    def run(self, jobs: list[Job]) -> None:
        """Train every job that is not finished, in order."""
        state = read_json(self._state_path)
        todo = [job for job in jobs if not job.finished]
        if len(todo) < len(jobs):
            self.console.print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished already", highlight=False)
        self._explain(todo, state)
        started, durations = time.monotonic(), []
        for done, job in enumerate(todo):
            name = f"{job.run}/{job.seed}"
            begun = time.monotonic()
            self._execute(job)
            durations.append(time.monotonic() - begun)
            left = (time.monotonic() - started) / (done + 1) * (len(todo) - done - 1)
            errors = job.record.get("metrics", {}).get("test_errors")
            self.console.print(
                f"\\[{done + 1:>{len(str(len(todo)))}}/{len(todo)}] {job.run}, seed {job.seed}: "
                + (f"{errors:.0f} test errors, " if errors is not None else "")
                + f"{durations[-1]:.1f} s; about {_duration(left)} left",
                highlight=False,
            )
            state[name] = {"address": job.folder.name, "key": job.key}
            write_json(self._state_path, state)

    def _explain(self, todo: list[Job], state: dict[str, Any]) -> None:
        """Say once a run why what was finished is run again."""
        said = set()
        for job in todo:
            earlier = state.get(f"{job.run}/{job.seed}", {})
            if earlier and earlier["address"] != job.folder.name and job.run not in said:
                said.add(job.run)
                self.console.print(f"{job.run} is run again: {difference(earlier['key'], job.key)}", highlight=False)

    def _execute(self, job: Job) -> None:
        if job.is_cache:
            started = time.monotonic()
            self.launch(job.argv)  # which goes on where it was
            size = sum(path.stat().st_size for path in job.folder.glob("*.bin"))
            took = round(time.monotonic() - started, 3)
            write_json(job.folder / "run.json", {"status": "finished", "wall_time_s": took, "metrics": {"cache_bytes": size}})
            return
        if job.folder.exists():
            if job.checkpoint.is_file():
                self.launch([*job.argv, f"--ckpt_path={job.checkpoint}"])
                return
            shutil.rmtree(job.folder)  # nothing was finished there
        self.launch(job.argv)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def by_run(jobs: list[Job]) -> Iterator[tuple[str, list[Job]]]:
    """Jobs grouped by run, in the order of seeds."""
    for name in dict.fromkeys(job.run for job in jobs):
        yield name, sorted((job for job in jobs if job.run == name), key=lambda job: job.seed)
