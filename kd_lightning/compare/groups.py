"""Groups of runs that differ only in their seeds."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from kd_lightning.compare.differences import differing_settings
from kd_lightning.compare.labels import join_first, make_labels
from kd_lightning.compare.references import ReferenceResolver
from kd_lightning.compare.runs import FINISHED, Run
from kd_lightning.compare.settings import Settings, digest, select_settings, short_names
from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import SeedGroup, SeedResult
from kd_lightning.values import mapping_at

_RepetitionKey = tuple[int, str, int | None]
"""A seed, the checksums of the teachers, and a position if the run repeats no other."""


@dataclass
class _Members:
    """Runs of one group.

    Attributes:
        separating: the settings that separate this group from others.
        runs: its runs.
        settings: all settings of each run.
    """

    separating: Settings
    runs: list[Run]
    settings: list[Settings]


def group_runs(
    runs: Sequence[Run], by: Sequence[str] = ()
) -> tuple[list[SeedGroup], list[str]]:
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
    members = _separate(finished, settings, by)
    separating = []
    run_names = []
    for group in members:
        separating.append(group.separating)
        run_names.append([run.name for run in group.runs])
    labels, label_note = make_labels(separating, run_names)

    all_names = _names(settings)
    groups = []
    for label, group in zip(labels, members, strict=True):
        # With --by, runs of one group can differ in other settings, and readers must know.
        pooled = differing_settings(group.settings)
        is_pooled = len(pooled) > 0
        if is_pooled:
            endings = short_names(pooled, all_names)
            names = join_first(list(endings.values()))
            notes.append(f"{label} pools runs that differ in {names}.")
        seed_group, repetition_notes = _make_group(label, group.runs, is_pooled)
        groups.append(seed_group)
        notes += repetition_notes

    # Several seeds can refer to the same weights, but one note is enough.
    for path in dict.fromkeys(resolver.unresolved):
        notes.append(f"{path} belongs to no readable run; its checksum identifies it.")
    if label_note:
        notes.append(label_note)
    return groups, notes


def _finished_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs, and a note on the others."""
    finished = []
    unfinished = []
    for run in runs:
        if run.status == FINISHED:
            finished.append(run)
        else:
            unfinished.append(f"{run.source} ({run.status})")
    if not finished:
        raise UserError(
            f"none of the {len(runs)} runs is finished; {runs[0].source} is {runs[0].status}"
        )
    notes = []
    if unfinished:
        notes.append(f"Skipped unfinished runs: {join_first(unfinished)}.")
    return finished, notes


def _check_same_data(runs: Sequence[Run]) -> None:
    """Raise a UserError if runs were tested on different samples."""
    source_of_data: dict[str, str] = {}
    for run in runs:
        if run.data:
            # The number of samples tells a subset from the whole.
            samples = mapping_at(run.data, "samples").get("test")
            data = f"{run.data.get('data')} with {samples} test samples"
            source_of_data.setdefault(data, run.source)
    if len(source_of_data) > 1:
        descriptions = []
        for data, source in source_of_data.items():
            descriptions.append(f"{data} ({source})")
        listed = "; ".join(descriptions)
        raise UserError(
            f"these runs have different data sets: {listed}; "
            "compare runs of one data set (for W&B, --group selects runs)"
        )


def _names(settings: Sequence[Settings]) -> list[str]:
    """The names of all settings, each as often as runs have it."""
    names: list[str] = []
    for run_settings in settings:
        names += run_settings
    return names


def _separate(
    runs: Sequence[Run],
    settings: Sequence[Settings],
    by: Sequence[str],
) -> list[_Members]:
    """Put runs whose separating settings are equal into one group.

    Args:
        runs: the runs.
        settings: the settings of each run.
        by: keys of the separating settings; if empty, all settings separate.
    """
    selected = select_settings(by, _names(settings)) if by else set()
    groups: dict[str, _Members] = {}
    for run, run_settings in zip(runs, settings, strict=True):
        separating = run_settings
        if by:
            separating = _only(run_settings, selected)
        new_group = _Members(separating, [], [])
        group = groups.setdefault(digest(separating), new_group)
        group.runs.append(run)
        group.settings.append(run_settings)
    return list(groups.values())


def _only(settings: Settings, names: Set[str]) -> Settings:
    """The settings of the given names, in their own order."""
    chosen = {}
    for name, value in settings.items():
        if name in names:
            chosen[name] = value
    return chosen


def _make_group(
    label: str,
    runs: Sequence[Run],
    pooled: bool,
) -> tuple[SeedGroup, list[str]]:
    """A group of runs in the order of seeds; of repetitions only the latest counts.

    Args:
        label: the label of the group.
        runs: its runs.
        pooled: whether their settings differ, so that runs of equal seed are no repetitions.

    Returns:
        The group, and notes on repetitions.
    """
    latest: dict[_RepetitionKey, Run] = {}
    notes = []
    in_order = sorted(runs, key=lambda run: run.started)
    for position, run in enumerate(in_order):
        # Runs of one seed with different teachers are different runs, not repetitions.
        checksums = [source.get("sha256") for source in run.teacher_sources]
        # The position makes the keys of pooled runs unique, so that none replaces another.
        key = (run.seed, str(checksums), position if pooled else None)
        if key in latest:
            earlier = latest[key].source
            notes.append(
                f"{earlier} is skipped: {run.source} repeats it with the same seed."
            )
        latest[key] = run

    results = []
    for run in sorted(latest.values(), key=lambda run: run.seed):
        results.append(SeedResult(run.seed, run.metrics, run.folder))
    seeds = {result.seed for result in results}
    if not pooled and len(seeds) < len(results):
        notes.append(f"{label} has several runs of one seed, with different teachers.")
    return SeedGroup(label, results), notes
