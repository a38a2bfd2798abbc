"""Measurements of runs, grouped over seeds: rows of results.json and tests between groups."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kd_lightning.experiments.stats import Comparison, bootstrap_examples, holm, interval, paired
from kd_lightning.runs.folder import RunFolder


class ResultRow(TypedDict):
    """One metric of one group, as results.json holds it.

    `std` is None with one seed. `interval` is the 95% interval of the mean, None with few seeds.
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
        """The results that have a metric, by seed; pooled runs can share a seed."""
        results: dict[int, list[SeedResult]] = {}
        for result in self.results:
            if metric in result.metrics:
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
    # The keys of results.json keep this order, so that two results can be compared as text.
    row: dict[str, object] = {
        "run": run,
        "metric": metric,
        "paper": paper,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }
    if with_interval:
        row["interval"] = interval(values)
    row["n"] = len(values)
    row["values"] = values
    if seeds is not None:
        row["seeds"] = seeds
    return cast(ResultRow, row)


def values_over_shared_seeds(
    a: SeedGroup, b: SeedGroup, metric: str
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
    return statistics.fmean(result.metrics[metric] for result in results)


def compare_groups(pairs: Sequence[tuple[SeedGroup, SeedGroup]], metric: str) -> list[Comparison]:
    """Test pairs of groups against each other, over the seeds that both have.

    Args:
        pairs: the groups `a` and `b` of each comparison.
        metric: the metric that is compared; test errors are also tested over test examples.

    Returns:
        One comparison per pair, with Holm's correction for all of them.
    """
    comparisons = []
    for a, b in pairs:
        # Pairing by seed removes the variance that both runs share, such as the sample order.
        values_a, values_b = values_over_shared_seeds(a, b, metric)
        comparison = paired(a.label, b.label, metric, values_a, values_b)
        # The bootstrap counts wrong predictions, so it tests no other metric.
        if metric == "test_errors" and comparison.p is not None:
            _add_bootstrap(comparison, a, b)
        comparisons.append(comparison)
    holm(comparisons)
    return comparisons


def _add_bootstrap(comparison: Comparison, a: SeedGroup, b: SeedGroup) -> None:
    """Add the interval over test examples if all runs kept predictions of the same examples."""
    results_a = a.by_seed(comparison.metric)
    results_b = b.by_seed(comparison.metric)
    shared_seeds = sorted(results_a.keys() & results_b.keys())
    wrong_a = _wrong_predictions(results_a, shared_seeds)
    wrong_b = _wrong_predictions(results_b, shared_seeds)
    if wrong_a is None or wrong_b is None:
        return
    # Both groups must have been tested on equally many examples.
    if wrong_a.shape[1] != wrong_b.shape[1]:
        return
    low, high = bootstrap_examples(wrong_a, wrong_b)
    comparison.examples_low = low
    comparison.examples_high = high


def _wrong_predictions(
    results: Mapping[int, Sequence[SeedResult]], seeds: Sequence[int]
) -> NDArray[np.bool_] | None:
    """`(runs, examples)`: whether each run errs on each test example.

    Returns:
        None if a run kept no predictions, or if runs were tested on different examples.
    """
    wrong: list[NDArray[np.bool_]] = []
    for seed in seeds:
        for result in results[seed]:
            errs = _errs_on_examples(result.folder)
            if errs is None:
                return None
            if wrong and errs.shape != wrong[0].shape:
                return None
            wrong.append(errs)
    return np.stack(wrong)


def _errs_on_examples(folder: RunFolder | None) -> NDArray[np.bool_] | None:
    """`(examples,)`: whether a run errs on each test example; None if it kept no predictions."""
    if folder is None:
        return None
    try:
        predictions = load_file(folder.test_predictions)
        predicted = predictions["logits"].argmax(-1)
        errs: NDArray[np.bool_] = predicted != predictions["target"]
    # Runs in W&B, or of another task, have no logits and targets here.
    except (OSError, KeyError, SafetensorError):
        return None
    return errs
