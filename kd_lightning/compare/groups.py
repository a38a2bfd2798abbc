"""Groups of runs that differ only in their seeds, and the metrics of their table."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from kd_lightning.compare.differences import differing_settings
from kd_lightning.compare.labels import join_first, make_labels
from kd_lightning.compare.references import ReferenceResolver
from kd_lightning.compare.runs import FINISHED, Run
from kd_lightning.compare.settings import Settings, digest, select_settings, short_names
from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import ResultRow, SeedGroup, SeedResult

FIRST_METRICS = ("test_errors", "test_accuracy")
"""These metrics come before all others."""


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> tuple[list[SeedGroup], list[str]]:
    """Group runs, in the order of the first run of each group.

    Args:
        runs: runs on one data set.
        by: keys of the settings that separate groups; if empty, all settings do.

    Returns:
        The groups, and notes on runs that were skipped or pooled.

    Raises:
        UserError: if no run is finished, if the data differs, or if no run has a key of `by`.
    """
    finished, notes = _finished_runs(runs)
    _check_same_data(finished)
    resolver = ReferenceResolver(finished)
    settings = [resolver.settings(run) for run in finished]
    all_names = [name for run_settings in settings for name in run_settings]
    separating: list[Settings] = list(settings)
    if by:
        selected = select_settings(by, all_names)
        separating = [_restrict(run_settings, selected) for run_settings in settings]

    members = _indices_by_digest(separating)
    labels, label_note = make_labels(
        [separating[indices[0]] for indices in members],
        [[finished[index].name for index in indices] for indices in members],
    )
    groups = []
    for label, indices in zip(labels, members, strict=True):
        group_of_runs = [finished[index] for index in indices]
        pooled = differing_settings([settings[index] for index in indices])
        if pooled:
            names = list(short_names(pooled, all_names).values())
            notes.append(f"{label} pools runs that differ in {join_first(names)}.")
        group, repetition_notes = _make_group(label, group_of_runs, pooled=bool(pooled))
        groups.append(group)
        notes += repetition_notes

    for path in dict.fromkeys(resolver.unresolved):
        notes.append(f"{path} belongs to no readable run; its checksum identifies it.")
    if label_note:
        notes.append(label_note)
    return groups, notes


def _finished_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    finished = [run for run in runs if run.status == FINISHED]
    unfinished = [f"{run.source} ({run.status})" for run in runs if run.status != FINISHED]
    if not finished:
        raise UserError(
            f"none of the {len(runs)} runs is finished; {runs[0].source} is {runs[0].status}"
        )
    notes = [f"Skipped unfinished runs: {join_first(unfinished)}."] if unfinished else []
    return finished, notes


def _check_same_data(runs: Sequence[Run]) -> None:
    """Raise a UserError if runs were tested on different samples."""
    example_of_data: dict[str, str] = {}
    for run in runs:
        if run.data:
            samples = run.data.get("samples", {}).get("test")
            data = f"{run.data.get('data')} with {samples} test samples"
            example_of_data.setdefault(data, run.source)
    if len(example_of_data) > 1:
        listed = "; ".join(f"{data} ({source})" for data, source in example_of_data.items())
        raise UserError(
            f"these runs have different data sets: {listed}; "
            "compare runs of one data set (for W&B, --group selects runs)"
        )


def _restrict(settings: Settings, names: set[str]) -> Settings:
    return {name: value for name, value in settings.items() if name in names}


def _indices_by_digest(settings: Iterable[Settings]) -> list[list[int]]:
    """The indices of equal settings, in the order of their first occurrence."""
    indices: dict[str, list[int]] = {}
    for index, run_settings in enumerate(settings):
        indices.setdefault(digest(run_settings), []).append(index)
    return list(indices.values())


def _make_group(label: str, runs: Sequence[Run], pooled: bool) -> tuple[SeedGroup, list[str]]:
    """A group of runs in the order of seeds; of repetitions only the latest counts.

    Args:
        label: the label of the group.
        runs: its runs.
        pooled: whether their settings differ, so that runs of equal seed are no repetitions.

    Returns:
        The group, and notes on repetitions.
    """
    latest: dict[tuple[int, str, int | None], Run] = {}
    notes = []
    in_order = sorted(runs, key=lambda run: run.started)
    for position, run in enumerate(in_order):
        # Runs of one seed with different teachers are different runs.
        teachers = str([source.get("sha256") for source in run.teacher_sources])
        key = (run.seed, teachers, position if pooled else None)
        if key in latest:
            earlier = latest[key].source
            notes.append(f"{earlier} is skipped: {run.source} repeats it with the same seed.")
        latest[key] = run

    counted = sorted(latest.values(), key=lambda run: run.seed)
    runs_per_seed = Counter(run.seed for run in counted)
    if not pooled and max(runs_per_seed.values()) > 1:
        notes.append(f"{label} has several runs of one seed, with different teachers.")
    results = [SeedResult(run.seed, run.metrics, run.folder) for run in counted]
    return SeedGroup(label, results), notes


def choose_metrics(
    groups: Sequence[SeedGroup], wanted: Sequence[str]
) -> tuple[list[str], list[SeedGroup], list[str]]:
    """Choose the metrics of the table.

    Args:
        groups: all groups.
        wanted: the metrics that the user named; if empty, the test metrics that all tested groups
            have.

    Returns:
        The metrics, the groups that have them, and notes on groups that were skipped.

    Raises:
        UserError: if nobody measured a wanted metric, or if there is no common test metric.
    """
    measured = sorted({metric for group in groups for metric in group.metrics})
    if wanted:
        return _wanted_metrics(groups, list(dict.fromkeys(wanted)), measured)
    tested = [group for group in groups if _test_metrics(group)]
    if not tested:
        raise UserError(
            "none of these runs was tested; train with --run.test=last, or name other --metrics"
        )
    shared = set.intersection(*(_test_metrics(group) for group in tested))
    if not shared:
        raise UserError(
            f"these runs share no test metric; name some with --metrics: {', '.join(measured)}"
        )
    untested = [group.label for group in groups if group not in tested]
    notes = [f"Skipped untested rows: {join_first(untested)}."] if untested else []
    first = [metric for metric in FIRST_METRICS if metric in shared]
    return first + sorted(shared.difference(first)), tested, notes


def _wanted_metrics(
    groups: Sequence[SeedGroup], wanted: list[str], measured: Sequence[str]
) -> tuple[list[str], list[SeedGroup], list[str]]:
    for metric in wanted:
        if metric not in measured:
            near = difflib.get_close_matches(metric, measured, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"measured metrics: {', '.join(measured)}"
            )
            raise UserError(f"--metrics: no run measured {metric!r}; {hint}")
    having = [group for group in groups if not group.metrics.isdisjoint(wanted)]
    without = [group.label for group in groups if group.metrics.isdisjoint(wanted)]
    notes = [f"Skipped rows without these metrics: {join_first(without)}."] if without else []
    return wanted, having, notes


def _test_metrics(group: SeedGroup) -> set[str]:
    return {metric for metric in group.metrics if metric.startswith("test_")}


def table_rows(groups: Sequence[SeedGroup], metrics: Sequence[str]) -> list[ResultRow]:
    """One row per group and metric, in the form of results.json."""
    rows = []
    for group in groups:
        for metric in metrics:
            row = group.row(metric)
            if row is not None:
                rows.append(row)
    return rows
