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
    # The rate over all strings, not the mean of their rates: long strings count more.
    rate_of_seed = counts.sum(1) / totals.sum()
    return [float(rate) for rate in rate_of_seed]


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
        # How often each string is drawn is all that a sum over strings needs.
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
        resampled_totals = self._weights @ totals
        rates_by_seed = (self._weights @ counts.T) / resampled_totals[:, None]
        # Seeds are resampled too, with replacement: training varies as much as the test set.
        num_seeds = len(counts)
        seeds = self._generator.integers(num_seeds, size=(RESAMPLES, num_seeds))
        drawn_rates = np.take_along_axis(rates_by_seed, seeds, 1)
        means: Counts = drawn_rates.mean(1)
        return means


def interval(values: Counts) -> tuple[float, float]:
    """Compute the 95% percentile interval.

    Args:
        values: one value per resample, `(RESAMPLES,)`.
    """
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
