"""An experiment's YAML, read and checked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped_root

PAPER_METRICS = ("test_errors", "test_accuracy")


@dataclass
class RunSpec:
    """One kind of run, repeated over seeds.

    Attributes:
        name: teacher, student-alone, distilled, ...
        configs: YAML files, after the experiment's own.
        overrides: `key: value`, after the experiment's own.
        needs: for each config key, the run whose last checkpoint of the same seed is its value.
        seeds: where they differ from the experiment's.
        grid: config key -> values: one run for each combination.
    """

    name: str
    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    seeds: list[int] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def expanded(self) -> list[RunSpec]:
        """One run for each combination of the grid's values, named by them."""
        combinations = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [
            replace(
                self,
                name=" ".join([self.name, *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())]),
                overrides={**self.overrides, **chosen},
                grid={},
            )
            for chosen in combinations
        ]


@dataclass
class Experiment:
    """What an experiment's YAML says.

    Attributes:
        name: its path below experiments/, without the ending.
        title: of its tables.
        claim: what the paper says that this shows.
        time: honest estimate of how long it takes, and on what.
        configs, overrides: shared by all runs.
        seeds: as many seeds, from 0.
        metrics: shown in the table.
        paper: the paper's numbers: run -> metric -> value.
        compare: pairs of runs that are tested against each other, by `compare_metric`.
        costs: whether the table shows what each run's network costs: parameters, FLOPs, file size, latency.
        note: printed below the table and kept in the results.
        runs: in the order of the table.
    """

    name: str
    title: str
    claim: str
    time: str
    runs: list[RunSpec]
    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5
    metrics: list[str] = field(default_factory=lambda: list(PAPER_METRICS))
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    compare: list[list[str]] = field(default_factory=list)
    compare_metric: str = "test_errors"
    note: str = ""
    costs: bool = False

    def run(self, name: str) -> RunSpec:
        return next(run for run in self.runs if run.name == name)


def find(name: str) -> Path:
    """The YAML of an experiment, by its name or its path."""
    root = shipped_root() / "experiments"
    for path in (Path(name), root / f"{name}.yaml"):
        if path.is_file():
            return path
    raise UserError(f"there is no experiment {name!r}; kd reproduce --list names them")


def load(name: str) -> Experiment:
    """Read an experiment.

    Raises:
        UserError: where it is missing, or says something that is not understood.
    """
    path = find(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the experiment {path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict):
        raise UserError(f"the experiment {path} names no runs")
    _check_keys(str(path), content, {f.name for f in fields(Experiment)} - {"name"})
    run_keys = {f.name for f in fields(RunSpec)} - {"name"}
    for run_name, value in content["runs"].items():
        _check_keys(f"{path}: runs.{run_name}", value or {}, run_keys)
    runs = [r for n, value in content.pop("runs").items() for r in RunSpec(name=n, **(value or {})).expanded()]
    missing = [key for key in ("title", "claim", "time") if not content.get(key)]
    if missing:
        raise UserError(f"the experiment {path} has no {missing[0]}")
    experiment = Experiment(name=name.removesuffix(".yaml"), runs=runs, **content)
    names = [run.name for run in runs]
    wanted = [need for run in runs for need in run.needs.values()] + [n for pair in experiment.compare for n in pair]
    for need in wanted:
        if need not in names:
            raise UserError(f"the experiment {path} speaks of a run {need!r}; its runs are {', '.join(names)}")
    return experiment


def _check_keys(where: str, content: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} is not understood; known are {', '.join(sorted(known))}")
