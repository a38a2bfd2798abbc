"""An experiment's YAML, read and checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import UserError
from kd_lightning.experiments.functions import resolve_function
from kd_lightning.paths import shipped_root
from kd_lightning.runs.configs import with_current_class_paths

PAPER_METRICS = ("test_errors", "test_accuracy")


@dataclass
class RunSpec:
    """One kind of run, repeated over seeds.

    Attributes:
        name: teacher, student-alone, distilled, ...
        configs: YAML files, after the experiment's own.
        overrides: `key: value`, after the experiment's own.
        needs: for each config key, the run whose last checkpoint (or cache) of the same seed is its value; `NAME@0` is
            that of seed 0 for all seeds, `NAME@*` a list of all its seeds; a list names several.
        cache: not a training but `kd cache` with these options (views, top_k, dtype) of the pair that the configs make.
        seeds: where they differ from the experiment's.
        grid: config key -> values: one run for each combination.
        may_fail: a seed whose training diverges counts as finished, without metrics.
    """

    name: str
    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, str | list[str]] = field(default_factory=dict)
    seeds: list[int] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    cache: dict[str, Any] | None = None
    may_fail: bool = False

    @property
    def wanted(self) -> list[str]:
        """Everything in `needs`, as `NAME`, `NAME@SEED` or `NAME@*`."""
        return [
            item
            for value in self.needs.values()
            for item in (value if isinstance(value, list) else [value])
        ]

    def expanded(self) -> list[RunSpec]:
        """One run for each combination of the grid's values, named by them."""
        combinations = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        return [
            replace(
                self,
                name=" ".join(
                    [
                        self.name,
                        *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items()),
                    ]
                ),
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
        alike: pairs of runs that are tested for being equal but for a margin in that metric (two one-sided tests).
        settings: names that stand in the text as `${name}`, with their values; `--NAME VALUE` changes one.
        instead: setting -> the experiment that is meant where that setting is given a value.
        quick: overrides (and `seeds`) of `--quick`, which cuts the experiment down to minutes.
        analyses: functions that read the finished runs and add rows, plots and tests; see experiments/analysis.py.
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
    alike: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
    costs: bool = False

    def run(self, name: str) -> RunSpec:
        return next(run for run in self.runs if run.name == name)


def find(name: str) -> Path:
    """The YAML of an experiment, by its name or its path."""
    root = shipped_root() / "experiments"
    for path in (Path(name), root / f"{name}.yaml"):
        if path.is_file():
            return path.absolute()
    raise UserError(f"there is no experiment {name!r}; kd reproduce --list names them")


def _filled(value: Any, settings: dict[str, Any]) -> Any:
    """`${name}` in every text: a text that is nothing else becomes the value itself."""
    if isinstance(value, dict):
        return {_filled(k, settings): _filled(v, settings) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(item, settings) for item in value]
    if isinstance(value, str) and "${" in value:
        for name, chosen in settings.items():
            if value == f"${{{name}}}":
                return chosen
            value = value.replace(f"${{{name}}}", str(chosen))
    return value


def load(name: str, chosen: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment.

    Args:
        name: of the experiment, or the path of a YAML.
        chosen: settings that differ from the YAML's; they become part of the experiment's name.

    Raises:
        UserError: where it is missing, or says something that is not understood.
    """
    path = find(name)
    try:
        content = with_current_class_paths(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the experiment {path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict):
        raise UserError(f"the experiment {path} names no runs")
    _check_keys(str(path), content, EXPERIMENT)
    known = content.get("settings") or {}
    for key, other in (content.get("instead") or {}).items():
        if (chosen or {}).get(key) not in (None, known.get(key)):
            return load(other, chosen)
    if unknown := sorted(set(chosen or {}) - set(known)):
        raise UserError(
            f"{name} has no setting --{unknown[0]}; it has {', '.join(known) or 'none'}"
        )
    changed = {key: value for key, value in (chosen or {}).items() if value != known[key]}
    content = {**_filled(content, {**known, **changed}), "settings": {**known, **changed}}
    for run_name, value in content["runs"].items():
        _check_keys(f"{path}: runs.{run_name}", {} if value is None else value, RUN)
    runs = [
        r
        for n, value in content.pop("runs").items()
        for r in RunSpec(name=n, **(value or {})).expanded()
    ]
    for analysis in (content.get("analyses") or {}).values():
        analysis["function"] = resolve_function(analysis["function"], path.parent)
    missing = [key for key in ("title", "claim", "time") if not content.get(key)]
    if missing:
        raise UserError(f"the experiment {path} has no {missing[0]}")
    root = shipped_root() / "experiments"
    stem = (
        path.with_suffix("").relative_to(root).as_posix()
        if path.is_relative_to(root)
        else path.stem
    )
    # Of a setting that is a path, its last part: the name is that of a folder.
    full = "-".join(
        [
            stem,
            *(
                f"{key}-{str(value).rstrip('/').rpartition('/')[2]}"
                for key, value in changed.items()
            ),
        ]
    )
    experiment = Experiment(name=full, runs=runs, **content)
    names = [run.name for run in runs]
    wanted = [need.partition("@")[0] for run in runs for need in run.wanted]
    wanted += [name for pair in experiment.compare for name in pair]
    wanted += (
        [] if experiment.analyses else list(experiment.paper)
    )  # analyses may add rows of other names
    wanted += [pair[side] for pair in experiment.alike for side in ("a", "b")]
    for need in wanted:
        if need not in names:
            raise UserError(
                f"the experiment {path} speaks of a run {need!r}; its runs are {', '.join(names)}"
            )
    return experiment


def _check_keys(where: str, content: Any, known: dict[str, Check]) -> None:
    """UserError for a key that is not known, or a value that is not of its kind."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must be keys with values, got {content!r}")
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise UserError(
            f"{where}: {unknown[0]!r} is not understood; known are {', '.join(sorted(known))}"
        )
    for name, value in content.items():
        if value is not None and not known[name][0](value):
            raise UserError(f"{where}: {name} must be {known[name][1]}, got {value!r}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_mapping_of(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())


Check = tuple[Callable[[Any], bool], str]
TEXT: Check = (lambda v: isinstance(v, str), "a text")
TEXTS: Check = (_is_texts, "a list of texts")
KEYS: Check = (lambda v: isinstance(v, dict), "keys with values")
RUN: dict[str, Check] = {
    "configs": TEXTS,
    "overrides": KEYS,
    "needs": (
        lambda v: (
            isinstance(v, dict)
            and all(isinstance(item, str) or _is_texts(item) for item in v.values())
        ),
        "config keys with names of runs",
    ),
    "seeds": (
        lambda v: isinstance(v, list) and all(isinstance(s, int) for s in v),
        "a list of whole numbers",
    ),
    "cache": (
        lambda v: isinstance(v, dict) and not set(v) - {"views", "top_k", "dtype"},
        "views, top_k and dtype",
    ),
    "may_fail": (lambda v: isinstance(v, bool), "true or false"),
    "grid": (lambda v: _is_mapping_of(v, list), "config keys with lists of values"),
}
EXPERIMENT: dict[str, Check] = {
    **dict.fromkeys(("title", "claim", "time", "compare_metric", "note"), TEXT),
    **dict.fromkeys(("configs", "metrics"), TEXTS),
    **dict.fromkeys(("runs", "overrides", "settings", "quick"), KEYS),
    "instead": (lambda v: _is_mapping_of(v, str), "settings with names of experiments"),
    "seeds": (_is_count, "a number of at least 1"),
    "paper": (lambda v: _is_mapping_of(v, dict), "runs with metrics with numbers"),
    "compare": (
        lambda v: isinstance(v, list) and all(_is_texts(p) and len(p) == 2 for p in v),
        "a list of pairs of runs",
    ),
    "alike": (
        lambda v: (
            isinstance(v, list)
            and all(isinstance(p, dict) and set(p) == {"a", "b", "margin"} for p in v)
        ),
        "a list of pairs with a, b and margin",
    ),
    "analyses": (
        lambda v: (
            _is_mapping_of(v, dict) and all(isinstance(a.get("function"), str) for a in v.values())
        ),
        "labels with a function and its options",
    ),
    "costs": (lambda v: isinstance(v, bool), "true or false"),
}
