"""The metrics of the table, and its rows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from kd_lightning.compare.labels import join_first
from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import ResultRow, SeedGroup

FIRST_METRICS = ("test_errors", "test_accuracy")
"""These metrics come before all others."""


class Selection(NamedTuple):
    """What the table shows.

    Attributes:
        metrics: its metrics, in order.
        groups: the groups that have one of them.
        notes: on groups that were skipped.
    """

    metrics: list[str]
    groups: list[SeedGroup]
    notes: list[str]


def choose_metrics(groups: Sequence[SeedGroup], requested: Sequence[str]) -> Selection:
    """Choose the metrics of the table.

    Args:
        groups: all groups.
        requested: the metrics that the user named; if empty, the table has the test metrics that
            all tested groups have.

    Raises:
        UserError: if no run measured a requested metric, or if there is no common test metric.
    """
    measured: set[str] = set()
    for group in groups:
        measured |= group.metrics
    if requested:
        # A metric that is named twice has one column.
        unique = list(dict.fromkeys(requested))
        return _requested_metrics(groups, unique, sorted(measured))
    return _common_test_metrics(groups, sorted(measured))


def _requested_metrics(
    groups: Sequence[SeedGroup],
    requested: list[str],
    measured: Sequence[str],
) -> Selection:
    """The metrics that the user named, and the groups that have one of them."""
    for metric in requested:
        if metric not in measured:
            # A typo is more likely than a metric that nobody measured.
            near = difflib.get_close_matches(metric, measured, n=1)
            if near:
                hint = f"did you mean {near[0]}?"
            else:
                hint = f"measured metrics: {', '.join(measured)}"
            raise UserError(f"--metrics: no run measured {metric!r}; {hint}")
    shown = []
    skipped = []
    for group in groups:
        if group.metrics.isdisjoint(requested):
            skipped.append(group.label)
        else:
            shown.append(group)
    notes = []
    if skipped:
        notes.append(f"Skipped rows without these metrics: {join_first(skipped)}.")
    return Selection(requested, shown, notes)


def _common_test_metrics(
    groups: Sequence[SeedGroup], measured: Sequence[str]
) -> Selection:
    """The test metrics that all tested groups have."""
    tested = []
    untested = []
    # Validation metrics are left to --metrics: recipes were chosen by them.
    test_metrics = {metric for metric in measured if metric.startswith("test_")}
    common = set(test_metrics)
    for group in groups:
        if group.metrics.isdisjoint(test_metrics):
            untested.append(group.label)
        else:
            tested.append(group)
            common &= group.metrics
    if not tested:
        return _common_validation_metrics(groups, measured)
    if not common:
        raise UserError(
            f"these runs share no test metric; name some with --metrics: {', '.join(measured)}"
        )
    first = [metric for metric in FIRST_METRICS if metric in common]
    others = sorted(common.difference(first))
    notes = []
    if untested:
        notes.append(f"Skipped untested rows: {join_first(untested)}.")
    return Selection(first + others, tested, notes)


def _common_validation_metrics(
    groups: Sequence[SeedGroup], measured: Sequence[str]
) -> Selection:
    """The validation metrics that all groups have, for runs that were not tested."""
    common = {metric for metric in measured if metric.startswith("val_")}
    for group in groups:
        common &= group.metrics
    if not common:
        raise UserError(
            "none of these runs was tested; train with --run.test=last, or name other --metrics"
        )
    first = [metric for metric in ("val_errors", "val_accuracy") if metric in common]
    others = sorted(common.difference(first))
    note = (
        "None of these runs was tested, so these are validation metrics, by which recipes are "
        "chosen; --run.test=last tests a run."
    )
    return Selection(first + others, list(groups), [note])


def table_rows(groups: Sequence[SeedGroup], metrics: Sequence[str]) -> list[ResultRow]:
    """One row per group and metric, in the form of results.json."""
    rows = []
    for group in groups:
        for metric in metrics:
            row = group.row(metric)
            if row is not None:
                rows.append(row)
    return rows
