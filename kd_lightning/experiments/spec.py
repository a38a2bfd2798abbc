"""An experiment's YAML, read and checked."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.functions import resolve_function
from kd_lightning.experiments.schema import (
    EXPERIMENT,
    MAX_JOBS,
    RUN,
    check_keys,
    check_run_names,
)
from kd_lightning.paths import shipped_root
from kd_lightning.runs.configs import with_current_names
from kd_lightning.runs.ranges import MAX_NAME_BYTES
from kd_lightning.yaml_files import YamlValue, read_yaml_file

PAPER_METRICS = ("test_errors", "test_accuracy")


@dataclass
class RunSpec:
    """One kind of run, repeated over seeds.

    Attributes:
        name: teacher, student-alone, distilled, ...
        configs: YAML files, composed after those of the experiment.
        overrides: `key: value`, applied after those of the experiment.
        needs: config key -> the run whose last checkpoint (or cache) is its value. `NAME` is the
            run of the same seed, `NAME@0` that of seed 0, `NAME@+1` that of the next seed (a
            teacher that must not share its student's initial weights), `NAME@*` a list of all its
            seeds. A list names several runs.
        seeds: the seeds, if they differ from those of the experiment.
        grid: config key -> values: one run per combination.
        cache: options of `kd cache` (views, top_k, dtype). If given, the run does not train but
            caches the outputs of the teacher of the pair that the configs compose.
        may_fail: whether a seed whose training diverges counts as finished, without metrics.
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
    def needed_names(self) -> list[str]:
        """The names of all runs in `needs`, without seeds."""
        names: list[str] = []
        for value in self.needs.values():
            needed = value if isinstance(value, list) else [value]
            for reference in needed:
                name, _, _ = reference.partition("@")
                names.append(name)
        return names

    @property
    def combinations(self) -> int:
        """The number of runs that `expanded` returns."""
        return math.prod(len(values) for values in self.grid.values())

    def expanded(self) -> list[RunSpec]:
        """Return one run per combination of the grid's values, with the values in its name."""
        runs = []
        for values in itertools.product(*self.grid.values()):
            combination = dict(zip(self.grid, values, strict=True))
            name = self.name
            for key, value in combination.items():
                # The full key would make the name too long for a table.
                last_part = key.rpartition(".")[2]
                name += f" {last_part}={value}"
            overrides = {**self.overrides, **combination}
            runs.append(replace(self, name=name, overrides=overrides, grid={}))
        return runs


@dataclass
class Experiment:
    """What an experiment's YAML states.

    Attributes:
        name: its path below experiments/, without the suffix.
        title: heads the tables.
        claim: the paper's claim that the experiment tests.
        time: an honest estimate of the duration, with the hardware.
        runs: in the order of the table.
        configs: YAML files that all runs share.
        overrides: `key: value` that all runs share.
        seeds: number of seeds, from 0.
        metrics: columns of the table.
        paper: the paper's numbers: run -> metric -> value.
        compare: pairs of runs whose difference in `compare_metric` is tested.
        compare_metric: the metric of `compare` and `alike`.
        alike: pairs of runs whose equality within a margin is tested by two one-sided tests.
        settings: names that stand in texts as `${name}`, with their values. `--NAME VALUE` changes
            a value.
        choices: setting -> its valid values; other settings may have any value.
        instead: setting -> the experiment that replaces this one if the setting is changed.
        quick: overrides (and `seeds`) of `--quick`, which cuts the experiment down to minutes.
        analyses: functions that read the finished runs and add rows, plots and tests; see
            experiments/analysis.py.
        note: printed below the table and stored in the results.
        costs: whether the table shows what each run's network costs: parameters, FLOPs, file size
            and latency.
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
    choices: dict[str, list[Any]] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
    costs: bool = False

    def run(self, name: str) -> RunSpec:
        """Return the run of that name."""
        matches = (run for run in self.runs if run.name == name)
        return next(matches)


def find(name: str) -> Path:
    """Return the path of an experiment's YAML, given its name or its path.

    Raises:
        UserError: if there is no such experiment; the message names similar ones.
    """
    try:
        for path in (Path(name), _experiments() / f"{name}.yaml"):
            if path.is_file():
                return path.absolute()
    except OSError as error:
        # For example a name that is too long.
        raise UserError(
            f"there is no experiment {name[:100]!r}: {error.strerror}"
        ) from None
    names = shipped_names()
    matches = difflib.get_close_matches(name, names, n=3)
    # `mnist` stands for hinton2015/mnist, and `hinton2015` for all of its experiments.
    matches += [other for other in names if name and name in other.split("/")]
    hint = ""
    if matches:
        hint = f"did you mean {' or '.join(list(dict.fromkeys(matches))[:3])}? "
    raise UserError(
        f"there is no experiment {name!r}; {hint}kd reproduce --list names all"
    )


def shipped_names() -> list[str]:
    """The names of the YAML files below experiments/."""
    root = _experiments()
    paths = sorted(root.rglob("*.yaml"))
    return [path.relative_to(root).with_suffix("").as_posix() for path in paths]


def _experiments() -> Path:
    return shipped_root() / "experiments"


def load(
    name: str,
    changes: Mapping[str, YamlValue] | None = None,
    above: tuple[str, ...] = (),
) -> Experiment:
    """Read and check an experiment.

    Args:
        name: the experiment's name, or the path of a YAML.
        changes: settings that differ from the YAML's; they become part of the experiment's name.
        above: the experiments that this one replaces.

    Raises:
        UserError: if there is no such experiment, or if its YAML is wrong.
    """
    if name in above:
        circle = " -> ".join([*above, name])
        raise UserError(
            f"the experiments replace each other in a circle (instead): {circle}"
        )
    path = find(name)
    content = _read(path)
    changes = changes or {}
    # A key without a value is null in YAML.
    defaults = content.get("settings") or {}
    instead = content.get("instead") or {}
    for setting, other in instead.items():
        is_changed = changes.get(setting) not in (None, defaults.get(setting))
        if is_changed:
            return load(other, changes, (*above, name))

    unknown = sorted(set(changes) - set(defaults))
    if unknown:
        valid = ", ".join(defaults) or "none"
        close = difflib.get_close_matches(unknown[0], defaults, n=1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise UserError(f"{name} has no setting --{unknown[0]}; it has {valid}{hint}")
    choices = content.get("choices") or {}
    # A setting that is given its default value does not change the experiment's name.
    changed = {}
    for setting, value in changes.items():
        _check_choice(name, setting, value, choices.get(setting))
        if value != defaults[setting]:
            changed[setting] = value
    settings = {**defaults, **changed}
    content = _filled(content, settings)
    content["settings"] = settings
    # Now that the settings are filled in, all values have their final types.
    check_keys(str(path), content, EXPERIMENT)
    # A key without a value is null in YAML, and means the default.
    content = {key: value for key, value in content.items() if value is not None}

    runs = _runs(path, content.pop("runs"))
    analyses = content.get("analyses", {})
    for analysis in analyses.values():
        # Afterwards the experiment no longer depends on the folder of its YAML.
        analysis["function"] = resolve_function(analysis["function"], path.parent)
    for key in ("title", "claim", "time"):
        if not content.get(key):
            raise UserError(f"the experiment {path} has no {key}")
    experiment = Experiment(name=_full_name(path, changed), runs=runs, **content)
    _check_names(path, experiment)
    return experiment


def _check_choice(
    name: str, setting: str, value: YamlValue, choices: list[YamlValue] | None
) -> None:
    """Raise a UserError for a value that is none of the choices of a setting, if it has any."""
    if choices is None or value in choices:
        return
    valid = ", ".join(map(str, choices))
    raise UserError(f"{name}: --{setting} cannot be {value}; valid values: {valid}")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of an experiment's YAML with its top level checked."""
    content = with_current_names(read_yaml_file(path, f"the experiment {path}"))
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict):
        raise UserError(f"the experiment {path} names no runs")
    if not content["runs"]:
        raise UserError(f"the experiment {path} names no runs")
    # Other values may still be placeholders.
    early = ("settings", "instead", "choices")
    check_keys(
        str(path), {key: content[key] for key in early if key in content}, EXPERIMENT
    )
    return content


def _filled(value: Any, settings: Mapping[str, YamlValue]) -> Any:
    """Replace `${name}` in all texts. A text of nothing else becomes the setting's value itself."""
    if isinstance(value, dict):
        filled = {}
        for key, item in value.items():
            filled[_filled(key, settings)] = _filled(item, settings)
        return filled
    if isinstance(value, list):
        return [_filled(item, settings) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    text = value
    for name, setting in settings.items():
        placeholder = f"${{{name}}}"
        # The setting keeps its type, for example a number.
        if text == placeholder:
            return setting
        text = text.replace(placeholder, str(setting))
    return text


def _runs(path: Path, content: Mapping[str, Any]) -> list[RunSpec]:
    """Return the runs of a YAML, one per combination of each grid."""
    check_run_names(str(path), content)
    grids = []
    for name, fields in content.items():
        # A run without any fields is null in YAML.
        values = {} if fields is None else fields
        check_keys(f"{path}: runs.{name}", values, RUN)
        given = {key: value for key, value in values.items() if value is not None}
        grids.append(RunSpec(name=name, **given))
    # Before the combinations are made: a short grid can stand for any number of them.
    for grid in grids:
        if grid.combinations > MAX_JOBS:
            raise UserError(
                f"{path}: runs.{grid.name}: the grid has {grid.combinations:,} combinations; at "
                f"most {MAX_JOBS:,} are planned"
            )
    runs = []
    for grid in grids:
        runs += grid.expanded()
    return runs


def _full_name(path: Path, changed: Mapping[str, YamlValue]) -> str:
    """Return an experiment's name, followed by its changed settings."""
    name = path.stem
    root = _experiments()
    if path.is_relative_to(root):
        name = path.with_suffix("").relative_to(root).as_posix()
    for key, value in changed.items():
        # The name becomes that of a folder, so it holds only the last part of a path.
        last_part = str(value).rstrip("/").rpartition("/")[2]
        name += f"-{key}-{last_part}"
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest > MAX_NAME_BYTES - 50:
        raise UserError(
            f"the settings make the experiment's name too long: {name[:100]}..."
        )
    return name


def _check_names(path: Path, experiment: Experiment) -> None:
    """Check that all runs exist which other parts of the YAML name."""
    mentioned: list[str] = []
    for run in experiment.runs:
        mentioned += run.needed_names
    for pair in experiment.compare:
        mentioned += pair
    # Analyses may add rows of other names, for which the paper may have numbers.
    if not experiment.analyses:
        mentioned += experiment.paper
    for pair_alike in experiment.alike:
        mentioned += [pair_alike["a"], pair_alike["b"]]

    names = [run.name for run in experiment.runs]
    for name in mentioned:
        if name not in names:
            valid = ", ".join(names)
            raise UserError(
                f"the experiment {path} names an unknown run {name!r}; runs: {valid}"
            )
