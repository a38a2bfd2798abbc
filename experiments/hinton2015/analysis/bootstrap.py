"""Bootstrap intervals over test strings and seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Counts = NDArray[np.float64]
"""Counts of frames or words in each string, `(strings,)` or `(seeds, strings)`."""


def rates(counts: Counts, totals: Counts) -> list[float]:
    """Compute each seed's rate over all strings.

    Args:
        counts: `(seeds, strings)`.
        totals: `(strings,)`.
    """
    return [float(rate) for rate in counts.sum(1) / totals.sum()]


def mean_rate(counts: Counts, totals: Counts) -> float:
    """Compute the mean over seeds of the rate over all strings.

    Args:
        counts: `(seeds, strings)`.
        totals: `(strings,)`.
    """
    return float(np.mean(rates(counts, totals)))


class Bootstrap:
    """Resamples test strings, and the seeds of each system.

    All systems share the resampled strings, so that differences between systems are paired. Each
    call of `means` draws new seeds.

    Args:
        strings: the number of test strings.
    """

    def __init__(self, strings: int) -> None:
        self._generator = np.random.default_rng(0)
        uniform = np.full(strings, 1 / strings)
        draws = self._generator.multinomial(strings, uniform, size=RESAMPLES)
        self._weights = draws.astype(float)

    def means(self, counts: Counts, totals: Counts) -> Counts:
        """Compute the mean over seeds of the rate `counts / totals` in each resample.

        Args:
            counts: `(seeds, strings)`.
            totals: `(strings,)`.

        Returns:
            Shape `(RESAMPLES,)`.
        """
        rates_by_seed = (self._weights @ counts.T) / (self._weights @ totals)[:, None]
        seeds = self._generator.integers(len(counts), size=(RESAMPLES, len(counts)))
        means: Counts = np.take_along_axis(rates_by_seed, seeds, 1).mean(1)
        return means


def interval(values: Counts) -> tuple[float, float]:
    """Compute the 95% percentile interval.

    Args:
        values: one value per resample, `(RESAMPLES,)`.
    """
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
