"""Whether one run beats another: over seeds, and over test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SEEDS = 5
"""Fewer seeds give no test, only the numbers."""


@dataclass
class Comparison:
    """Run `a` against run `b`, by the difference a - b of a metric.

    Attributes:
        mean: of the differences, paired by seed.
        low, high: its 95% interval (Student's t over seeds).
        p: two-sided, of the paired t-test; `p_holm` corrected for all comparisons of the experiment (Holm 1979).
        examples_low, examples_high: 95% bootstrap interval of the mean difference in errors over test examples, all seeds
            together, since seeds share one test set; None where the metric is not the error count.
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
        return asdict(self)

    def sentence(self) -> str:
        """What the test says, in words."""
        head = f"{self.a} - {self.b}: {self.mean:+.4g} {self.metric} on average over {self.n} paired seeds"
        if self.p is None:
            return f"{head} (no test: fewer than {LEAST_SEEDS} seeds)"
        text = f"{head}, 95% interval [{self.low:+.4g}, {self.high:+.4g}], paired t-test p = {self.p:.2g}"
        if self.p_holm != self.p:
            text += f" (Holm: {self.p_holm:.2g})"
        if self.examples_low is not None:
            text += f"; bootstrap over test examples [{self.examples_low:+.4g}, {self.examples_high:+.4g}]"
        return text


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95% interval of the mean over seeds (Student's t); None where there are too few."""
    if len(values) < LEAST_SEEDS:
        return None
    from scipy.stats import t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    return [mean - reach, mean + reach]


def paired(
    a: str, b: str, metric: str, values_a: Sequence[float], values_b: Sequence[float]
) -> Comparison:
    """Paired t-test over seeds; the values stand in the same order of seeds."""
    difference = np.asarray(values_a, dtype=float) - np.asarray(values_b, dtype=float)
    result = Comparison(
        a, b, metric, len(difference), float(difference.mean()) if len(difference) else float("nan")
    )
    if len(difference) < LEAST_SEEDS:
        return result
    if np.ptp(difference) == 0:  # t is undefined: no spread, so the difference is exact
        result.low = result.high = result.mean
        result.p = 1.0 if result.mean == 0 else 0.0
        return result
    from scipy.stats import ttest_1samp

    test = ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(0.95)
    result.low, result.high, result.p = (
        float(interval.low),
        float(interval.high),
        float(test.pvalue),
    )
    return result


@dataclass
class Equivalence:
    """Whether runs `a` and `b` are alike but for a margin: two one-sided paired t-tests (Schuirmann 1987).

    Attributes:
        mean: of the differences a - b, paired by seed.
        low, high: its 90% interval; inside (-margin, margin) where p < 0.05.
        p: of the equivalence, the larger of both tests.
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
        return asdict(self) | {"sentence": self.sentence()}

    def sentence(self) -> str:
        head = f"{self.a} and {self.b} alike within {self.margin:g} {self.metric}: difference {self.mean:+.4g} over {self.n} seeds"
        if self.p is None:
            return f"{head} (no test: fewer than {LEAST_SEEDS} seeds)"
        verdict = "shown" if self.p < 0.05 else "not shown"
        return f"{head}, 90% interval [{self.low:+.4g}, {self.high:+.4g}], TOST p = {self.p:.2g}: {verdict}"


def alike(
    a: str, b: str, metric: str, margin: float, values_a: Sequence[float], values_b: Sequence[float]
) -> Equivalence:
    """Equivalence test over seeds; the values stand in the same order of seeds."""
    difference = np.asarray(values_a, dtype=float) - np.asarray(values_b, dtype=float)
    result = Equivalence(a, b, metric, len(difference), margin, float(difference.mean()))
    if len(difference) < LEAST_SEEDS:
        return result
    if np.ptp(difference) == 0:  # no spread: the difference is exact
        result.low = result.high = result.mean
        result.p = 0.0 if abs(result.mean) < margin else 1.0
        return result
    from scipy.stats import ttest_1samp

    interval = ttest_1samp(difference, 0.0).confidence_interval(0.9)
    result.low, result.high = float(interval.low), float(interval.high)
    above = ttest_1samp(difference, -margin, alternative="greater").pvalue
    below = ttest_1samp(difference, margin, alternative="less").pvalue
    result.p = float(max(above, below))
    return result


def bootstrap_examples(
    wrong_a: NDArray[np.bool_], wrong_b: NDArray[np.bool_], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the difference in error counts, test examples drawn anew.

    Args:
        wrong_a, wrong_b: `(seeds, examples)`, whether each seed's run errs on each example.
    """
    per_example = wrong_a.mean(0) - wrong_b.mean(0)
    values, counts = np.unique(per_example, return_counts=True)
    # Drawing examples with replacement is drawing how often each of the few distinct differences occurs.
    drawn = np.random.default_rng(seed).multinomial(
        len(per_example), counts / counts.sum(), size=resamples
    )
    low, high = np.percentile(drawn @ values, [2.5, 97.5])
    return float(low), float(high)


def holm(comparisons: list[Comparison]) -> None:
    """Fill in the Holm-corrected p-values of all comparisons that have one."""
    tested = sorted((c for c in comparisons if c.p is not None), key=lambda c: c.p or 0.0)
    largest = 0.0
    for at, comparison in enumerate(tested):
        assert comparison.p is not None
        largest = max(largest, min(1.0, comparison.p * (len(tested) - at)))
        comparison.p_holm = largest
