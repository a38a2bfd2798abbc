"""Runs side by side: one row for all seeds of a setting."""

from __future__ import annotations

import difflib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_lightning.compare.labels import differing, labels, listing, selected, short
from kd_lightning.compare.origins import Origins, digest
from kd_lightning.compare.runs import Run
from kd_lightning.errors import UserError

FIRST = ("test_errors", "test_accuracy")


@dataclass
class Measured:
    """One seed of a group."""

    seed: int
    metrics: Mapping[str, float]
    folder: Path | None = None


@dataclass
class Group:
    """One row: runs that differ in their seeds alone."""

    label: str
    runs: list[Measured]
    paper: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def metrics(self) -> set[str]:
        return {metric for run in self.runs for metric in run.metrics}


def grouped(runs: Sequence[Run], by: Sequence[str] = ()) -> tuple[list[Group], list[str]]:
    """Groups in the order of their first runs, and notes on what was left out or pooled.

    Args:
        runs: of one data set.
        by: keys that alone decide who belongs together; all that differ, but for the seed, where empty.

    Raises:
        UserError: where no run is finished, they are of several data sets, or a key is of none of them.
    """
    finished = [run for run in runs if run.status == "finished"]
    unfinished = [f"{run.where} ({run.status})" for run in runs if run.status != "finished"]
    notes = [f"Not finished and left out: {listing(unfinished)}."] if unfinished else []
    if not finished:
        raise UserError(
            f"none of the {len(runs)} runs is finished; {runs[0].where} is {runs[0].status}"
        )
    _check_data(finished)
    origins = Origins(finished)
    whole = [origins.settings(run) for run in finished]
    chosen = selected(by, [name for one in whole for name in one]) if by else None
    kept = [
        one if chosen is None else {n: v for n, v in one.items() if n in chosen} for one in whole
    ]
    members: dict[str, list[int]] = {}
    for at, one in enumerate(kept):
        members.setdefault(digest(one), []).append(at)
    held = list(members.values())
    made, note = labels(
        [kept[group[0]] for group in held], [[finished[at].name for at in group] for group in held]
    )
    groups = []
    for label, group in zip(made, held, strict=True):
        pooled = differing([whole[at] for at in group])
        if pooled:
            shown = short(pooled, [name for one in whole for name in one])
            notes.append(f"{label} pools runs that differ in {listing(list(shown.values()))}.")
        counted, more = _once([finished[at] for at in group], label, bool(pooled))
        groups.append(
            Group(label, [Measured(run.seed, run.metrics, run.folder) for run in counted])
        )
        notes += more
    notes += [
        f"{path} is of no run that can be read: it counts by its checksum."
        for path in dict.fromkeys(origins.lost)
    ]
    return groups, [*notes, *filter(None, [note])]


def _check_data(runs: Sequence[Run]) -> None:
    """UserError where runs were not tested on the same samples."""
    found: dict[str, str] = {}
    for run in runs:
        if run.data:
            tested = run.data.get("samples", {}).get("test")
            found.setdefault(f"{run.data.get('data')} with {tested} test samples", run.where)
    if len(found) > 1:
        of = "; ".join(f"{data} ({where})" for data, where in found.items())
        raise UserError(
            f"these runs are of different data sets: {of}; compare runs of one (--group chooses those of one in W&B)"
        )


def _once(runs: Sequence[Run], label: str, pooled: bool) -> tuple[list[Run], list[str]]:
    """The runs by seed, each repetition once, the latest; and what to say of it."""
    latest: dict[tuple[Any, ...], Run] = {}
    repeated = []
    for at, run in enumerate(sorted(runs, key=lambda run: run.started)):
        key = (
            run.seed,
            str([source.get("sha256") for source in run.teacher]),
            at if pooled else None,
        )
        if key in latest:
            repeated.append(
                f"{latest[key].where} is left out: {run.where} repeats it with the same seed."
            )
        latest[key] = run
    counted = sorted(latest.values(), key=lambda run: run.seed)
    if not pooled and max(Counter(run.seed for run in counted).values()) > 1:
        repeated.append(f"{label} holds a seed more than once, with other teachers.")
    return counted, repeated


def from_results(content: Mapping[str, Any], prefix: str = "") -> list[Group]:
    """The rows of an experiment's results.json; seeds that it does not name are 0, 1, ..., as the runner has them."""
    groups: dict[str, Group] = {}
    for row in content["rows"]:
        group = groups.setdefault(row["run"], Group(prefix + row["run"], []))
        seeds = row.get("seeds") or range(len(row["values"]))
        group.paper = {**group.paper, row["metric"]: row.get("paper")}
        for seed, value in zip(seeds, row["values"], strict=False):
            known = next((run for run in group.runs if run.seed == seed), None)
            if known is None:
                known = Measured(seed, {})
                group.runs.append(known)
            known.metrics = {**known.metrics, row["metric"]: value}
    return list(groups.values())


def choose_metrics(
    groups: Sequence[Group], wanted: Sequence[str]
) -> tuple[list[str], list[Group], list[str]]:
    """The metrics of the table, its groups, and notes: the test metrics that all tested groups have, unless some are wanted.

    Raises:
        UserError: for a metric that nobody measured, or where nobody was tested.
    """
    measured = sorted({metric for group in groups for metric in group.metrics})
    for metric in wanted:
        if metric not in measured:
            near = difflib.get_close_matches(metric, measured, n=1)
            hint = f"did you mean {near[0]}?" if near else f"measured were {', '.join(measured)}"
            raise UserError(f"--metrics: no run measured {metric!r}; {hint}")
    if wanted:
        without = [g.label for g in groups if not g.metrics & set(wanted)]
        notes = (
            [f"Left out, since they have none of these metrics: {listing(without)}."]
            if without
            else []
        )
        return (
            list(dict.fromkeys(wanted)),
            [group for group in groups if group.label not in without],
            notes,
        )
    tested = [
        group for group in groups if any(metric.startswith("test_") for metric in group.metrics)
    ]
    if not tested:
        raise UserError(
            "none of these runs was tested; train with --run.test=last, or name other --metrics"
        )
    untested = [group.label for group in groups if group not in tested]
    notes = [f"Not tested and left out: {listing(untested)}."] if untested else []
    shared = [
        metric
        for metric in measured
        if metric.startswith("test_") and all(metric in group.metrics for group in tested)
    ]
    if not shared:
        raise UserError(
            f"these runs share no test metric; name some with --metrics: {', '.join(measured)}"
        )
    return (
        sorted(shared, key=lambda m: (FIRST.index(m) if m in FIRST else len(FIRST), m)),
        tested,
        notes,
    )


def rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row a group and metric, in the form of results.json."""
    found = []
    for group in groups:
        for metric in metrics:
            held = [(run.seed, run.metrics[metric]) for run in group.runs if metric in run.metrics]
            values = [value for _, value in held]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                numbers = {
                    "mean": statistics.fmean(values),
                    "std": spread,
                    "n": len(values),
                    "values": values,
                }
                row = {
                    "run": group.label,
                    "metric": metric,
                    "paper": group.paper.get(metric),
                    **numbers,
                }
                found.append(row | {"seeds": [seed for seed, _ in held]})
    return found
