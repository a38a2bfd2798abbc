"""The jobs of an experiment: one per run and seed, each with the key that decides its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.job import Job
from kd_lightning.experiments.job_arguments import (
    format_override,
    format_overrides,
    with_inner_root,
)
from kd_lightning.experiments.keys import address, run_key
from kd_lightning.experiments.schema import MAX_JOBS
from kd_lightning.experiments.spec import Experiment, RunSpec
from kd_lightning.experiments.store import FinishedRuns, is_finished, read_record
from kd_lightning.values import Values
from kd_lightning.yaml_files import YamlValue

__all__ = [
    "Job",
    "RunnerOptions",
    "by_run",
    "chosen",
    "format_override",
    "format_overrides",
    "plan",
]

Need = Job | list[Job]
"""What a run needs for one setting: a job, or a list of jobs."""


@dataclass
class RunnerOptions:
    """How to run an experiment, beyond what its YAML states.

    Attributes:
        output: folder of the results.
        store: folder of the runs.
        seeds: number of seeds, from 0, of runs that list no seeds of their own.
        overrides: take precedence over the overrides of all runs.
        only: the runs to execute, with the runs they need; empty for all.
        workers: number of jobs that run side by side.
        keep_finished: whether to accept finished runs whose keys differ only in code.
    """

    output: Path
    store: Path
    seeds: int
    overrides: dict[str, Any]
    only: Sequence[str] = ()
    workers: int = 1
    keep_finished: bool = False


def plan(experiment: Experiment, options: RunnerOptions) -> list[Job]:
    """Return all jobs of an experiment, each after the jobs that it needs.

    Args:
        experiment: the experiment.
        options: how to run it.

    Raises:
        UserError: for an unknown run in `options.only`, and for runs that need each other.
    """
    return _Planner(experiment, options).plan()


class _Planner:
    """Makes the jobs of one experiment; each job and each parsed config only once."""

    def __init__(self, experiment: Experiment, options: RunnerOptions) -> None:
        self.experiment = experiment
        self.options = options
        # In the order in which they will run.
        self._jobs: dict[tuple[str, int], Job] = {}
        self._run_keys: dict[str, dict[str, Any]] = {}
        self._finished_runs: FinishedRuns | None = None
        if options.keep_finished:
            self._finished_runs = FinishedRuns(options.store, options.output)

    def plan(self) -> list[Job]:
        """Return the jobs of the chosen runs."""
        runs = chosen(self.experiment, self.options.only)
        # Before a job is made, because seeds can stand for any number of them.
        count = 0
        for run in runs:
            count += len(self._seeds(run))
        if count > MAX_JOBS:
            raise UserError(
                f"{self.experiment.name} would have {count:,} jobs (runs times seeds); at most "
                f"{MAX_JOBS:,} are planned"
            )
        for run in runs:
            for seed in self._seeds(run):
                self._job(run, seed, above=())
        return list(self._jobs.values())

    def _seeds(self, run: RunSpec) -> Sequence[int]:
        """Return the seeds of a run."""
        if run.seeds is not None:
            return run.seeds
        return range(self.options.seeds)

    def _job(self, run: RunSpec, seed: int, above: tuple[str, ...]) -> Job:
        """Return the job of a run and seed, and add it to the plan after those that it needs.

        Args:
            above: the runs on whose behalf this one is needed, to detect a circle.
        """
        if run.name in above:
            circle = " -> ".join([*above, run.name])
            raise UserError(
                f"the experiment's runs need each other in a circle: {circle}"
            )
        identity = (run.name, seed)
        if identity not in self._jobs:
            # The jobs that this one needs enter the plan first, because the plan keeps this order.
            needs = self._needs(run, seed, (*above, run.name))
            self._jobs[identity] = self._new_job(run, seed, needs)
        return self._jobs[identity]

    def _needs(
        self,
        run: RunSpec,
        seed: int,
        above: tuple[str, ...],
    ) -> dict[str, Need]:
        """Return what a run needs: setting -> job or list of jobs."""
        needs: dict[str, Need] = {}
        for setting, wanted in run.needs.items():
            # The form in the YAML decides between one value and a list, even for a list of one job.
            if isinstance(wanted, list):
                names = wanted
                is_list = True
            else:
                names = [wanted]
                is_list = wanted.endswith("@*")
            jobs: list[Job] = []
            for name in names:
                jobs += self._needed_jobs(name, seed, above)
            needs[setting] = jobs if is_list else jobs[0]
        return needs

    def _needed_jobs(self, wanted: str, seed: int, above: tuple[str, ...]) -> list[Job]:
        """Return the jobs that a name in `needs` stands for.

        Args:
            wanted: `NAME` (same seed), `NAME@SEED`, `NAME@+STEP` (a seed higher by STEP) or
                `NAME@*` (all seeds).
            seed: of the run that needs them.
            above: the runs that need that run.
        """
        name, _, wanted_seed = wanted.partition("@")
        run = self.experiment.run(name)
        if wanted_seed == "*":
            jobs = []
            for each in self._seeds(run):
                jobs.append(self._job(run, each, above))
            return jobs
        if wanted_seed.startswith("+"):
            needed_seed = seed + int(wanted_seed)
        elif wanted_seed:
            needed_seed = int(wanted_seed)
        else:
            needed_seed = seed
        return [self._job(run, needed_seed, above)]

    def _new_job(self, run: RunSpec, seed: int, needs: dict[str, Need]) -> Job:
        """Return a job whose needs are planned."""
        settings = self._settings(run)
        key = self._key(run, seed, settings, needs)
        folder, accepted_key = self._folder(key, run.may_fail)
        argv = self._argv(run, seed, settings, needs, folder)
        return Job(
            run=run.name,
            seed=seed,
            key=key,
            folder=folder,
            argv=argv,
            needs=_all_jobs(needs),
            may_fail=run.may_fail,
            accepted_key=accepted_key,
        )

    def _settings(self, run: RunSpec) -> list[str]:
        """Return the arguments that all seeds of a run share: configs, then overrides."""
        argv: list[str] = []
        for config in (*self.experiment.configs, *run.configs):
            argv += ["-c", config]
        # Later overrides take precedence over earlier ones.
        # Every run of an experiment is tested, whatever its configs say.
        overrides = {
            "run.test": "last",
            **self.experiment.overrides,
            **run.overrides,
            **self.options.overrides,
        }
        return argv + format_overrides(with_inner_root(overrides))

    def _key(
        self,
        run: RunSpec,
        seed: int,
        settings: list[str],
        needs: dict[str, Need],
    ) -> dict[str, Any]:
        """Return everything that decides the result of a run with one seed."""
        # Parsing is slow, so one parse serves all seeds. Needed runs enter the key by their
        # addresses, never by their paths; the parser only sees placeholders.
        if run.name not in self._run_keys:
            placeholders: dict[str, YamlValue] = {}
            for setting, need in needs.items():
                # The parser's result enters the key, so it must not depend on the number of jobs.
                is_list = isinstance(need, list)
                placeholders[setting] = ["needed"] if is_list else "needed"
            argv = ["fit", *settings, *format_overrides(placeholders)]
            is_cache = run.cache is not None
            self._run_keys[run.name] = run_key(argv, caches=is_cache)

        key = {**self._run_keys[run.name], "seed": seed}
        addresses = _for_each(needs, lambda job: job.folder.name)
        key.update(addresses)
        if run.cache is not None:
            for name, value in run.cache.items():
                key[f"cache.{name}"] = value
        return key

    def _folder(
        self, key: Values, may_fail: bool
    ) -> tuple[Path, dict[str, Any] | None]:
        """Return the folder of the run with that key, and the key of an accepted earlier run."""
        folder = self.options.store / address(key)
        if self._finished_runs is None:
            return folder, None
        # A run of today's code takes precedence over one of earlier code.
        # `--keep-finished` is for runs that would otherwise be trained again.
        if is_finished(read_record(folder), may_fail):
            return folder, None
        earlier = self._finished_runs.find(key, may_fail)
        if earlier is None:
            return folder, None
        return earlier.folder, earlier.key

    def _argv(
        self,
        run: RunSpec,
        seed: int,
        settings: list[str],
        needs: dict[str, Need],
        folder: Path,
    ) -> list[str]:
        """Return the arguments of `kd` for one seed."""
        products = _for_each(needs, lambda job: str(job.product))
        argv = [*settings, f"--seed_everything={seed}", *format_overrides(products)]
        if run.cache is None:
            place = [
                f"--run.dir={folder}",
                f"--run.name={run.name}",
                f"--run.group={self.experiment.name}",
            ]
            return ["fit", *argv, *place]
        for name, value in run.cache.items():
            # The options of `kd cache` have dashes: `--top-k`.
            option = name.replace("_", "-")
            argv.append(f"--{option}={value}")
        return ["cache", *argv, f"--output={folder}"]


def chosen(experiment: Experiment, only: Sequence[str]) -> list[RunSpec]:
    """Return the runs with the given names, or of grids with those names; all runs if none is given.

    Raises:
        UserError: for a name that no run has.
    """
    if not only:
        return list(experiment.runs)
    named_runs: set[str] = set()
    for name in only:
        matches = [run.name for run in experiment.runs if _is_named(run, name)]
        if not matches:
            all_names = dict.fromkeys(run.name for run in experiment.runs)
            # Without repetition: a grid has one name for all its runs.
            names = ", ".join(all_names)
            raise UserError(
                f"--only {name!r}: {experiment.name} has no such run; its runs are {names}"
            )
        named_runs.update(matches)
    # The order of the experiment, not that of the arguments.
    return [run for run in experiment.runs if run.name in named_runs]


def _is_named(run: RunSpec, name: str) -> bool:
    """Return whether a run has that name or is of a grid that has it, such as `student lr=0.1`."""
    if run.name == name:
        return True
    return run.name.startswith(f"{name} ")


def _all_jobs(needs: Mapping[str, Need]) -> list[Job]:
    """Return the jobs of all settings, in order."""
    jobs: list[Job] = []
    for need in needs.values():
        jobs += need if isinstance(need, list) else [need]
    return jobs


def _for_each(
    needs: Mapping[str, Need], value_of: Callable[[Job], str]
) -> dict[str, YamlValue]:
    """Return `setting -> value` of each needed job, or a list of values for a list of jobs."""
    values: dict[str, YamlValue] = {}
    for setting, need in needs.items():
        if isinstance(need, list):
            values[setting] = [value_of(job) for job in need]
        else:
            values[setting] = value_of(need)
    return values


def by_run(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Group jobs by their runs, each group in the order of its seeds."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.run, []).append(job)
    for group in groups.values():
        group.sort(key=lambda job: job.seed)
    return groups
