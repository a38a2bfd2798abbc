"""Tests of each row against a baseline row."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.compare.labels import join_first
from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import SeedGroup, compare_groups
from kd_lightning.experiments.report import is_fraction
from kd_lightning.experiments.stats import LEAST_SEEDS, Comparison


def compare_to_baseline(
    groups: Sequence[SeedGroup],
    baseline: str,
    metric: str,
) -> list[Comparison]:
    """Test every other group against the baseline over shared seeds, with Holm's correction.

    Args:
        groups: of the table.
        baseline: label of one of them.
        metric: to compare.

    Raises:
        UserError: if no group has the baseline's label.
    """
    labels = [group.label for group in groups]
    if baseline not in labels:
        rows = join_first(labels, at_most=20, separator="; ")
        raise UserError(f"--baseline: there is no row {baseline!r}; rows are: {rows}")
    base = groups[labels.index(baseline)]
    pairs = []
    for group in groups:
        if group is not base:
            pairs.append((group, base))
    return compare_groups(pairs, metric)


def difference_cell(comparison: Comparison) -> str:
    """The difference to the baseline with its interval and corrected p-value, for the table.

    Args:
        comparison: of a row with the baseline.
    """
    if not comparison.n:
        return "no shared seed"
    scale = 1
    unit = ""
    # A difference between percentages is in percentage points.
    if is_fraction(comparison.metric):
        scale = 100
        unit = " points"
    mean = f"{scale * comparison.mean:+.4g}{unit}"
    # With too few seeds there is only the difference.
    if comparison.p is None:
        plural = "s" if comparison.n > 1 else ""
        return f"{mean} (no test: {comparison.n} seed{plural})"
    low = scale * (comparison.low or 0)
    high = scale * (comparison.high or 0)
    interval = f"[{low:+.4g}, {high:+.4g}]"
    return f"{mean} {interval}, p = {comparison.p_holm:.2g}"


def baseline_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Explain the column of differences, and name its limits."""
    if not comparisons:
        return []
    first = comparisons[0]
    text = f"Difference in {first.metric} from {first.b}, paired by seed"
    tests = sum(comparison.p is not None for comparison in comparisons)
    if tests:
        plural = "s" if tests > 1 else ""
        text += (
            ", with its 95% interval and the p-value of the paired t-test, "
            f"Holm-corrected for {tests} test{plural}"
        )
    notes = [f"{text}."]
    if tests < len(comparisons):
        notes.append(
            f"Rows with fewer than {LEAST_SEEDS} shared seeds are not tested and not ranked."
        )
    return notes
