"""The jobs of an experiment: one a run and seed, each with the key that decides its result."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import address, run_key
from kd_lightning.experiments.spec import Experiment, RunSpec
from kd_lightning.runs.folder import read_json


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
        may_fail: whether it counts as finished where its training diverged.
    """

    run: str
    seed: int
    key: dict[str, Any]
    folder: Path
    argv: list[str]
    needs: list[Job]
    may_fail: bool = False

    @property
    def record(self) -> dict[str, Any]:
        return read_json(self.folder / "run.json")

    @property
    def finished(self) -> bool:
        status = self.record.get("status")
        return status == "finished" or (self.may_fail and status == "failed")

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
    def data_root(self) -> str | None:
        """The folder of the data sets that its command names."""
        given = (word.partition("=") for word in self.argv)
        return next(
            (value for key, _, value in given if key in ("--data.root", "--data.data.root")), None
        )

    @property
    def command(self) -> str:
        return shlex.join(["kd", *self.argv])


@dataclass
class Settings:
    """How an experiment is run, beyond what its YAML says.

    Attributes:
        output: folder of the results.
        store: folder of the runs.
        seeds: as many seeds, from 0, for runs that name none of their own.
        overrides: over those of all runs.
        only: the runs that are wanted, and what they need; all where empty.
        workers: runs side by side.
    """

    output: Path
    store: Path
    seeds: int
    overrides: dict[str, Any]
    only: Sequence[str] = ()
    workers: int = 1


def format_override(key: str, value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True, width=10_000)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
    return f"--{key}={text}"


def plan(experiment: Experiment, settings: Settings) -> list[Job]:
    """All jobs, those that others need first."""
    jobs: dict[tuple[str, int], Job] = {}
    keys: dict[str, dict[str, Any]] = {}

    def seeds_of(run: RunSpec) -> Iterable[int]:
        return run.seeds if run.seeds is not None else range(settings.seeds)

    def needed(wanted: str, seed: int, above: tuple[str, ...]) -> list[Job]:
        name, _, fixed = wanted.partition("@")
        run = experiment.run(name)
        return [
            add(run, s, above) for s in (seeds_of(run) if fixed == "*" else [int(fixed or seed)])
        ]

    def add(run: RunSpec, seed: int, above: tuple[str, ...] = ()) -> Job:
        if run.name in above:
            raise UserError(
                f"the experiment's runs need each other in a circle: {' -> '.join([*above, run.name])}"
            )
        if (run.name, seed) not in jobs:
            needs: dict[str, Job | list[Job]] = {}
            for key, wanted in run.needs.items():
                names = wanted if isinstance(wanted, list) else [wanted]
                found = [job for name in names for job in needed(name, seed, (*above, run.name))]
                needs[key] = (
                    found if isinstance(wanted, list) or wanted.endswith("@*") else found[0]
                )
            jobs[run.name, seed] = _job(experiment, run, seed, needs, settings, keys)
        return jobs[run.name, seed]

    for run in chosen(experiment, settings.only):
        for seed in seeds_of(run):
            add(run, seed)
    return list(jobs.values())


def chosen(experiment: Experiment, only: Sequence[str]) -> list[RunSpec]:
    """The runs of those names, or of grids of those names; UserError for a name that there is not."""
    for name in only:
        if not any(run.name == name or run.name.startswith(f"{name} ") for run in experiment.runs):
            known = ", ".join(dict.fromkeys(run.name for run in experiment.runs))
            raise UserError(
                f"--only {name!r}: {experiment.name} has no such run; its runs are {known}"
            )
    return [
        r
        for r in experiment.runs
        if not only or any(r.name == n or r.name.startswith(f"{n} ") for n in only)
    ]


def _placed(overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides with `data.root` where it belongs: within, where a run's data is a part of other data."""
    data = overrides.get("data")
    inner = data.get("init_args", {}).get("data") if isinstance(data, dict) else None
    return {
        "data.data.root" if inner and key == "data.root" else key: value
        for key, value in overrides.items()
    }


def _job(
    experiment: Experiment,
    run: RunSpec,
    seed: int,
    needs: dict[str, Job | list[Job]],
    settings: Settings,
    keys: dict[str, dict[str, Any]],
) -> Job:
    overrides = _placed(
        {"run.test": "last", **experiment.overrides, **run.overrides, **settings.overrides}
    )
    configs = [part for name in [*experiment.configs, *run.configs] for part in ("-c", name)]
    argv = [*configs, *(format_override(k, v) for k, v in overrides.items())]
    # One parse serves all seeds; what a run needs enters by its address, never by its path.
    if run.name not in keys:
        blank = {
            name: ["needed"] if isinstance(job, list) else "needed" for name, job in needs.items()
        }
        keys[run.name] = run_key(["fit", *argv, *(format_override(k, v) for k, v in blank.items())])
    addresses = {
        k: [j.folder.name for j in v] if isinstance(v, list) else v.folder.name
        for k, v in needs.items()
    }
    key = {**keys[run.name], **addresses, "seed": seed}
    key |= {f"cache.{name}": value for name, value in (run.cache or {}).items()}
    folder = settings.store / address(key)
    products = {
        k: [str(j.product) for j in v] if isinstance(v, list) else str(v.product)
        for k, v in needs.items()
    }
    argv += [
        f"--seed_everything={seed}",
        *(format_override(name, value) for name, value in products.items()),
    ]
    if run.cache is None:
        argv = [
            "fit",
            *argv,
            f"--run.dir={folder}",
            f"--run.name={run.name}",
            f"--run.group={experiment.name}",
        ]
    else:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in run.cache.items()]
        argv = ["cache", *argv, *options, f"--output={folder}"]
    flat = [
        job for value in needs.values() for job in (value if isinstance(value, list) else [value])
    ]
    return Job(run.name, seed, key, folder, argv, flat, run.may_fail)


def by_run(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Jobs grouped by run, in the order of seeds."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.run, []).append(job)
    return {name: sorted(group, key=lambda job: job.seed) for name, group in groups.items()}
