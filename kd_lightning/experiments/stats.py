"""Statistical tests between two runs: over seeds, and over test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SEEDS = 5
"""With fewer seeds there is no test, only the numbers."""


@dataclass
class Comparison:
    """Run `a` against run `b`, by the difference a - b of a metric.

    Attributes:
        a: the first run.
        b: the second run.
        metric: the metric that is compared.
        n: the number of seeds that both runs have.
        mean: mean difference, paired by seed.
        low: lower end of its 95% interval (Student's t over seeds).
        high: upper end of that interval.
        p: two-sided p-value of the paired t-test.
        p_holm: `p` corrected for all comparisons of the experiment (Holm 1979).
        examples_low: lower end of the 95% bootstrap interval of the mean difference in errors over
            test examples, averaged over seeds because all seeds share one test set; None unless
            the metric is the error count.
        examples_high: upper end of that interval.
    """

    a: str
    b: str
    metric: str
    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    examples_low: float | None = None
    examples_high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All attributes, for results.json."""
        return asdict(self)

    def sentence(self) -> str:
        """The result of the test, in words."""
        text = (
            f"{self.a} - {self.b}: {self.mean:+.4g} {self.metric} on average "
            f"over {count_seeds(self.n, 'paired ')}"
        )
        if self.p is None:
            return f"{text} (no test: fewer than {LEAST_SEEDS} seeds)"
        interval = f"[{self.low:+.4g}, {self.high:+.4g}]"
        text += f", 95% interval {interval}, paired t-test p = {self.p:.2g}"
        # With a single test, Holm's correction changes nothing.
        if self.p_holm != self.p:
            text += f" (Holm: {self.p_holm:.2g})"
        if self.examples_low is not None:
            text += (
                "; bootstrap over test examples "
                f"[{self.examples_low:+.4g}, {self.examples_high:+.4g}]"
            )
        return text


@dataclass
class Equivalence:
    """Whether runs `a` and `b` are equal within a margin.

    The test is two one-sided paired t-tests (Schuirmann 1987).

    Attributes:
        a: the first run.
        b: the second run.
        metric: the metric that is compared.
        n: the number of seeds that both runs have.
        margin: the largest difference that counts as equal.
        mean: mean difference a - b, paired by seed.
        low: lower end of its 90% interval; the interval is inside (-margin, margin) if p < 0.05.
        high: upper end of that interval.
        p: p-value of the equivalence: the larger one of both tests.
    """

    a: str
    b: str
    metric: str
    n: int
    margin: float
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All attributes and the sentence, for results.json."""
        return asdict(self) | {"sentence": self.sentence()}

    def sentence(self) -> str:
        """The result of the test, in words."""
        text = (
            f"{self.a} and {self.b} alike within {self.margin:g} {self.metric}: "
            f"difference {self.mean:+.4g} over {count_seeds(self.n)}"
        )
        if self.p is None:
            return f"{text} (no test: fewer than {LEAST_SEEDS} seeds)"
        verdict = "shown" if self.p < 0.05 else "not shown"
        return (
            f"{text}, 90% interval [{self.low:+.4g}, {self.high:+.4g}], "
            f"TOST p = {self.p:.2g}: {verdict}"
        )


def count_seeds(n: int, kind: str = "") -> str:
    """A number of seeds in words, such as \"1 paired seed\"."""
    return f"{n} {kind}seed" if n == 1 else f"{n} {kind}seeds"


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95% interval of the mean over seeds (Student's t); None with too few seeds."""
    n = len(values)
    if n < LEAST_SEEDS:
        return None
    # Imported late, because scipy.stats is slow to import.
    from scipy.stats import t

    mean = float(np.mean(values))
    standard_deviation = float(np.std(values, ddof=1))
    standard_error = standard_deviation / n**0.5
    # A two-sided 95% interval leaves 2.5% on each side.
    quantile = float(t.ppf(0.975, n - 1))
    half_width = quantile * standard_error
    return [mean - half_width, mean + half_width]


def paired(
    a: str,
    b: str,
    metric: str,
    values_a: Sequence[float],
    values_b: Sequence[float],
) -> Comparison:
    """Paired t-test over seeds.

    Args:
        a: name of the first run.
        b: name of the second run.
        metric: name of the metric.
        values_a: the metric of `a`, one value per seed.
        values_b: the metric of `b`, for the same seeds in the same order.
    """
    difference = _differences(values_a, values_b)
    n = len(difference)
    mean = float(difference.mean()) if n else float("nan")
    result = Comparison(a, b, metric, n, mean)
    if n < LEAST_SEEDS:
        return result
    # Without any spread, t is undefined and the difference is exact.
    if np.ptp(difference) == 0:
        result.low = mean
        result.high = mean
        result.p = 1.0 if mean == 0 else 0.0
        return result
    from scipy.stats import ttest_1samp

    test = ttest_1samp(difference, 0.0)
    bounds = test.confidence_interval(0.95)
    result.low = float(bounds.low)
    result.high = float(bounds.high)
    result.p = float(test.pvalue)
    return result


def alike(
    a: str,
    b: str,
    metric: str,
    margin: float,
    values_a: Sequence[float],
    values_b: Sequence[float],
) -> Equivalence:
    """Equivalence test over seeds (two one-sided paired t-tests).

    Args:
        a: name of the first run.
        b: name of the second run.
        metric: name of the metric.
        margin: the largest difference that counts as equal.
        values_a: the metric of `a`, one value per seed.
        values_b: the metric of `b`, for the same seeds in the same order.
    """
    difference = _differences(values_a, values_b)
    mean = float(difference.mean())
    result = Equivalence(a, b, metric, len(difference), margin, mean)
    if len(difference) < LEAST_SEEDS:
        return result
    # Without any spread, t is undefined and the difference is exact.
    if np.ptp(difference) == 0:
        result.low = mean
        result.high = mean
        result.p = 0.0 if abs(mean) < margin else 1.0
        return result
    from scipy.stats import ttest_1samp

    # Two one-sided tests at 5% correspond to the 90% interval.
    bounds = ttest_1samp(difference, 0.0).confidence_interval(0.9)
    result.low = float(bounds.low)
    result.high = float(bounds.high)
    # Equal means both: above the lower margin and below the upper one.
    p_above = ttest_1samp(difference, -margin, alternative="greater").pvalue
    p_below = ttest_1samp(difference, margin, alternative="less").pvalue
    result.p = float(max(p_above, p_below))
    return result


def _differences(
    values_a: Sequence[float], values_b: Sequence[float]
) -> NDArray[np.float64]:
    """`(seeds,)`: the difference a - b of each seed."""
    array_a = np.asarray(values_a, dtype=np.float64)
    array_b = np.asarray(values_b, dtype=np.float64)
    difference: NDArray[np.float64] = array_a - array_b
    return difference


def bootstrap_examples(
    counts_a: NDArray[np.float64],
    counts_b: NDArray[np.float64],
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile interval of the difference in counts, resampling test examples.

    Args:
        counts_a: `(seeds, examples)`, what each example adds to the count of each seed of `a`; for
            test errors 1 if the seed errs on it.
        counts_b: `(seeds, examples)`, the same for `b`.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.
    """
    per_example = counts_a.mean(0) - counts_b.mean(0)
    # Drawing examples with replacement means drawing how often each distinct difference occurs,
    # and there are only a few distinct differences.
    values, counts = np.unique(per_example, return_counts=True)
    generator = np.random.default_rng(seed)
    probabilities = counts / counts.sum()
    drawn = generator.multinomial(len(per_example), probabilities, size=resamples)
    # `(resamples,)`: the difference in error counts of each bootstrap sample.
    differences = drawn @ values
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def holm(comparisons: list[Comparison]) -> None:
    """Set `p_holm` of all comparisons that have a p-value (Holm 1979)."""
    tested: list[tuple[float, Comparison]] = []
    for comparison in comparisons:
        if comparison.p is not None:
            tested.append((comparison.p, comparison))
    tested.sort(key=lambda pair: pair[0])
    largest = 0.0
    for rank, (p, comparison) in enumerate(tested):
        remaining_tests = len(tested) - rank
        corrected = min(1.0, p * remaining_tests)
        # A corrected p-value is never below that of a comparison with a smaller p-value.
        largest = max(largest, corrected)
        comparison.p_holm = largest


def tie_numbers(ranges: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Number the groups of runs that a few seeds cannot tell apart; group 1 is the lowest.

    Two runs are tied if the ranges of their seeds overlap, or if a chain of overlapping runs
    connects them.

    Args:
        ranges: the lowest and the highest value over the seeds of each run.

    Returns:
        The number of each run's group, in the order of the runs' lowest values.
    """
    numbers = {}
    group = 0
    reach = float("-inf")
    # Sorted by the lower end, so that one pass finds the chains of overlapping ranges.
    for name in sorted(ranges, key=lambda name: ranges[name]):
        lowest, highest = ranges[name]
        # A gap to all earlier runs starts a new group.
        if lowest > reach:
            group += 1
        reach = max(reach, highest)
        numbers[name] = group
    return numbers
