"""An experiment's YAML, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.functions import resolve_function
from kd_lightning.experiments.locating import experiments_root, find, shipped_names
from kd_lightning.experiments.run_spec import RunSpec
from kd_lightning.experiments.schema import (
    EXPERIMENT,
    MAX_JOBS,
    RUN,
    check_keys,
    check_run_names,
)
from kd_lightning.runs.configs import with_current_names
from kd_lightning.runs.ranges import MAX_NAME_BYTES
from kd_lightning.yaml_files import YamlValue, read_yaml_file

__all__ = ["PAPER_METRICS", "Experiment", "RunSpec", "find", "load", "shipped_names"]

PAPER_METRICS = ("test_errors", "test_accuracy")


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
        # The names were checked when the YAML was read.
        matches = (run for run in self.runs if run.name == name)
        return next(matches)


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
    other = _replacement(content, changes)
    if other is not None:
        return load(other, changes, (*above, name))

    changed = _changed_settings(name, content, changes)
    settings = {**defaults, **changed}
    content = _filled(content, settings)
    content["settings"] = settings
    # Now that the settings are filled in, all values have their final types.
    check_keys(str(path), content, EXPERIMENT)
    # A key without a value is null in YAML, and means the default.
    content = _without_nulls(content)

    runs = _runs(path, content.pop("runs"))
    analyses = content.get("analyses", {})
    # A misspelled function must not be noticed after days of training.
    for analysis in analyses.values():
        # Afterwards the experiment no longer depends on the folder of its YAML.
        analysis["function"] = resolve_function(analysis["function"], path.parent)
    for key in ("title", "claim", "time"):
        if not content.get(key):
            raise UserError(f"the experiment {path} has no {key}")
    full_name = _full_name(path, changed)
    experiment = Experiment(name=full_name, runs=runs, **content)
    _check_names(path, experiment)
    return experiment


def _replacement(
    content: Mapping[str, Any], changes: Mapping[str, YamlValue]
) -> str | None:
    """The experiment that replaces this one if a setting is changed; `None` for this one."""
    defaults = content.get("settings") or {}
    instead: dict[str, str] = content.get("instead") or {}
    for setting, other in instead.items():
        default = defaults.get(setting)
        if changes.get(setting) not in (None, default):
            return other
    return None


def _changed_settings(
    name: str,
    content: Mapping[str, Any],
    changes: Mapping[str, YamlValue],
) -> dict[str, YamlValue]:
    """The settings whose values differ from the YAML's.

    A setting that is given its default value does not change the experiment's name.

    Raises:
        UserError: for a setting that the experiment does not have, or a value that is no choice.
    """
    defaults = content.get("settings") or {}
    # A setting is what the YAML gives a default to.
    unknown = sorted(set(changes) - set(defaults))
    if unknown:
        valid = ", ".join(defaults) or "none"
        close = difflib.get_close_matches(unknown[0], defaults, n=1)
        hint = f"; did you mean --{close[0]}?" if close else ""
        raise UserError(f"{name} has no setting --{unknown[0]}; it has {valid}{hint}")
    choices = content.get("choices") or {}
    changed = {}
    for setting, value in changes.items():
        _check_choice(name, setting, value, choices.get(setting))
        if value != defaults[setting]:
            changed[setting] = value
    return changed


def _check_choice(
    name: str,
    setting: str,
    value: YamlValue,
    choices: list[YamlValue] | None,
) -> None:
    """Raise a UserError for a value that is none of the choices of a setting, if it has any."""
    if choices is None or value in choices:
        return
    valid = ", ".join(map(str, choices))
    raise UserError(f"{name}: --{setting} cannot be {value}; valid values: {valid}")


def _read(path: Path) -> dict[str, Any]:
    """Return the content of an experiment's YAML with its top level checked."""
    content = with_current_names(read_yaml_file(path, f"the experiment {path}"))
    # Two mistakes, one message: no mapping at all, or a mapping without runs.
    no_runs = UserError(f"the experiment {path} names no runs")
    if not isinstance(content, dict):
        raise no_runs
    runs = content.get("runs")
    if not isinstance(runs, dict) or not runs:
        raise no_runs
    # Other values may still be placeholders.
    early = {}
    for key in ("settings", "instead", "choices"):
        if key in content:
            early[key] = content[key]
    check_keys(str(path), early, EXPERIMENT)
    return content


def _filled(value: YamlValue, settings: Mapping[str, YamlValue]) -> Any:
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
        grids.append(RunSpec(name=name, **_without_nulls(values)))
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


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not null."""
    given = {}
    for key, value in values.items():
        if value is not None:
            given[key] = value
    return given


def _full_name(path: Path, changed: Mapping[str, YamlValue]) -> str:
    """Return an experiment's name, followed by its changed settings."""
    name = path.stem
    root = experiments_root()
    # A shipped experiment has the name that `kd reproduce` takes.
    if path.is_relative_to(root):
        name = path.with_suffix("").relative_to(root).as_posix()
    for key, value in changed.items():
        # The name becomes that of a folder, so it holds only the last part of a path.
        last_part = str(value).rstrip("/").rpartition("/")[2]
        name += f"-{key}-{last_part}"
    # Each part becomes a folder, and file systems count bytes.
    lengths = [len(part.encode()) for part in name.split("/")]
    longest = max(lengths)
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
