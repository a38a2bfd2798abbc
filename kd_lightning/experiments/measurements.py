"""Measurements of runs, grouped over seeds: rows of results.json and tests between groups."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kd_lightning.experiments.stats import (
    Comparison,
    bootstrap_examples,
    holm,
    interval,
    paired,
)
from kd_lightning.runs.folder import RunFolder


class ResultRow(TypedDict):
    """One metric of one group, as results.json holds it.

    `std` is None with one seed. If a value is not finite, `mean` is NaN and `std` None. `interval` is the 95% interval of the mean, None with few seeds.
    `values` and `seeds` are in the same order.
    """

    run: str
    metric: str
    paper: float | None
    mean: float
    std: float | None
    interval: NotRequired[list[float] | None]
    n: int
    values: list[float]
    seeds: NotRequired[list[int]]


@dataclass
class SeedResult:
    """What one run with one seed measured.

    Attributes:
        seed: its seed.
        metrics: the last value of each metric.
        folder: the run's folder; None if it is unknown.
    """

    seed: int
    metrics: Mapping[str, float]
    folder: RunFolder | None = None


@dataclass
class SeedGroup:
    """Runs that differ only in their seeds: one run of an experiment, or one row of a table.

    Attributes:
        label: the name of the group.
        results: one result per run.
        paper: the paper's value of each metric, if it has one.
    """

    label: str
    results: list[SeedResult]
    paper: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def metrics(self) -> set[str]:
        """The metrics that at least one seed measured."""
        metrics: set[str] = set()
        for result in self.results:
            metrics |= result.metrics.keys()
        return metrics

    def by_seed(self, metric: str) -> dict[int, list[SeedResult]]:
        """The results that have a finite metric, by seed; pooled runs can share a seed."""
        results: dict[int, list[SeedResult]] = {}
        for result in self.results:
            # No test can use a value that is not finite.
            if math.isfinite(result.metrics.get(metric, math.nan)):
                results.setdefault(result.seed, []).append(result)
        return results

    def row(self, metric: str, with_interval: bool = False) -> ResultRow | None:
        """The group's row for a metric; None if no seed measured it."""
        # A seed lacks the metric if its training diverged, or if it was not tested.
        seeds = []
        values = []
        for result in self.results:
            if metric in result.metrics:
                seeds.append(result.seed)
                values.append(float(result.metrics[metric]))
        if not values:
            return None
        return result_row(
            self.label,
            metric,
            values,
            paper=self.paper.get(metric),
            seeds=seeds,
            with_interval=with_interval,
        )


def result_row(
    run: str,
    metric: str,
    values: list[float],
    *,
    paper: float | None,
    seeds: list[int] | None = None,
    with_interval: bool = True,
) -> ResultRow:
    """Summarize the values of one metric.

    Args:
        run: the name of the run.
        metric: the name of the metric.
        values: one value per seed, at least one.
        paper: the paper's value, if it has one.
        seeds: the seeds of the values, if they are known.
        with_interval: whether to add the 95% interval of the mean.
    """
    is_finite = all(map(math.isfinite, values))
    has_spread = is_finite and len(values) > 1
    # The keys of results.json keep this order, so that two results can be compared as text.
    row: dict[str, object] = {
        "run": run,
        "metric": metric,
        "paper": paper,
        "mean": statistics.fmean(values) if is_finite else math.nan,
        "std": statistics.stdev(values) if has_spread else None,
    }
    if with_interval:
        row["interval"] = interval(values) if is_finite else None
    row["n"] = len(values)
    row["values"] = values
    if seeds is not None:
        row["seeds"] = seeds
    return cast(ResultRow, row)


def values_over_shared_seeds(
    a: SeedGroup,
    b: SeedGroup,
    metric: str,
) -> tuple[list[float], list[float]]:
    """The metric of both groups for the seeds that both have, in the order of seeds.

    Runs of one group that share a seed count with their mean.
    """
    results_a = a.by_seed(metric)
    results_b = b.by_seed(metric)
    values_a = []
    values_b = []
    shared_seeds = sorted(results_a.keys() & results_b.keys())
    for seed in shared_seeds:
        values_a.append(_mean(results_a[seed], metric))
        values_b.append(_mean(results_b[seed], metric))
    return values_a, values_b


def _mean(results: Sequence[SeedResult], metric: str) -> float:
    """The mean of a metric over results that share a seed."""
    return statistics.fmean(result.metrics[metric] for result in results)


def compare_groups(
    pairs: Sequence[tuple[SeedGroup, SeedGroup]], metric: str
) -> list[Comparison]:
    """Test pairs of groups against each other, over the seeds that both have.

    Args:
        pairs: the groups `a` and `b` of each comparison.
        metric: the metric that is compared. If it is the count of the runs' task, such as test
            errors, it is also tested over test examples.

    Returns:
        One comparison per pair, with Holm's correction for all of them.
    """
    comparisons = []
    for a, b in pairs:
        # Pairing by seed removes the variance that both runs share, such as the sample order.
        values_a, values_b = values_over_shared_seeds(a, b, metric)
        comparison = paired(a.label, b.label, metric, values_a, values_b)
        # Runs store what each test example adds to their task's count, and to no other metric.
        if _is_count(metric, a) and comparison.p is not None:
            _add_bootstrap(comparison, a, b)
        comparisons.append(comparison)
    holm(comparisons)
    return comparisons


def _is_count(metric: str, group: SeedGroup) -> bool:
    """Whether a metric is the count that the task of these runs compares."""
    folder = group.results[0].folder
    task = folder.record.get("task") if folder is not None else None
    # Runs of version 0.1 record no task: all of them are classification.
    count = task["count"] if task else "errors"
    return metric == f"test_{count}"


def _add_bootstrap(comparison: Comparison, a: SeedGroup, b: SeedGroup) -> None:
    """Add the interval over test examples if all runs kept predictions of the same examples."""
    results_a = a.by_seed(comparison.metric)
    results_b = b.by_seed(comparison.metric)
    shared_seeds = sorted(results_a.keys() & results_b.keys())
    counts_a = _counts_of_examples(results_a, shared_seeds)
    counts_b = _counts_of_examples(results_b, shared_seeds)
    # A run that was tested by another program, or on other data, cannot be compared per example.
    if counts_a is None or counts_b is None:
        return
    # Both groups must have been tested on equally many examples.
    if counts_a.shape[1] != counts_b.shape[1]:
        return
    low, high = bootstrap_examples(counts_a, counts_b)
    comparison.examples_low = low
    comparison.examples_high = high


def _counts_of_examples(
    results: Mapping[int, Sequence[SeedResult]], seeds: Sequence[int]
) -> NDArray[np.float64] | None:
    """`(runs, examples)`: what each test example adds to each run's count.

    Returns:
        None if a run stored no predictions, or if runs were tested on different examples.
    """
    counts: list[NDArray[np.float64]] = []
    for seed in seeds:
        for result in results[seed]:
            of_run = _counts_of_run(result.folder)
            if of_run is None:
                return None
            if counts and of_run.shape != counts[0].shape:
                return None
            counts.append(of_run)
    return np.stack(counts)


def _counts_of_run(folder: RunFolder | None) -> NDArray[np.float64] | None:
    """`(examples,)`: what each test example adds to the count; None if nothing was stored."""
    if folder is None:
        return None
    try:
        stored = load_file(folder.test_predictions)
        if "count" in stored:
            # An example without a label adds nothing to the count of either run.
            counts: NDArray[np.float64] = np.nan_to_num(stored["count"])
            return counts
        # A run of version 0.1: classification, with one label per example.
        predicted = stored["logits"].argmax(-1)
        wrong: NDArray[np.bool_] = predicted != stored["target"]
    except (OSError, KeyError, SafetensorError):
        return None
    return wrong.astype(np.float64)
