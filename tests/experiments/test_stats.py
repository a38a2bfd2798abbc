"""Whether one run beats another, against computations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kd_lightning.experiments.stats import (
    LEAST_SEEDS,
    Comparison,
    bootstrap_examples,
    holm,
    interval,
    paired,
)

A = [10.0, 12.0, 9.0, 14.0, 11.0]
B = [8.0, 11.0, 9.0, 10.0, 9.0]


def test_paired_t_by_hand() -> None:
    result = paired("a", "b", "test_errors", A, B)
    # The differences are 2, 1, 0, 4, 2: mean 1.8, squared deviations 0.04 + 0.64 + 3.24 + 4.84 + 0.04 = 8.8.
    assert result.n == 5
    assert result.mean == pytest.approx(1.8)
    error = math.sqrt(8.8 / 4 / 5)
    quantile = (
        2.7764451  # Student's t, 4 degrees of freedom, 97.5%, from a printed table
    )
    assert result.low == pytest.approx(1.8 - quantile * error, rel=1e-6)
    assert result.high == pytest.approx(1.8 + quantile * error, rel=1e-6)
    assert result.p == pytest.approx(2 * stats.t.sf(1.8 / error, 4), rel=1e-9)


def test_paired_t_equals_scipy_and_is_paired() -> None:
    result = paired("a", "b", "test_errors", A, B)
    assert result.p == pytest.approx(stats.ttest_rel(A, B).pvalue, rel=1e-12)
    unpaired = paired("a", "b", "test_errors", A, [B[1], B[0], *B[2:]])
    assert unpaired.mean == result.mean
    assert unpaired.p != pytest.approx(result.p, rel=0.01)
    mirrored = paired("b", "a", "test_errors", B, A)
    assert mirrored.mean == -result.mean
    assert mirrored.p == pytest.approx(result.p)
    assert result.low is not None
    assert mirrored.high == pytest.approx(-result.low)


@pytest.mark.parametrize("n", range(1, LEAST_SEEDS))
def test_fewer_than_five_seeds_give_no_test(n: int) -> None:
    result = paired("a", "b", "test_errors", A[:n], B[:n])
    assert (result.p, result.low, result.high) == (None, None, None)
    assert result.mean == pytest.approx(np.mean(np.subtract(A[:n], B[:n])))
    assert "no test: fewer than 5 seeds" in result.sentence()
    holm([result])
    assert result.p_holm is None


def test_differences_without_spread() -> None:
    same = paired("a", "b", "test_errors", A, A)
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = paired("a", "b", "test_errors", [value + 3 for value in A], A)
    assert (shifted.low, shifted.high, shifted.p) == (3.0, 3.0, 0.0)


def with_p(*values: float | None) -> list[Comparison]:
    return [
        Comparison(f"a{at}", "b", "test_errors", 5, 0.0, p=p)
        for at, p in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04; and never less than the one before.
        ((0.04, 0.01, 0.03, 0.02), (0.06, 0.04, 0.06, 0.06)),
        ((0.5, 0.6), (1.0, 1.0)),
        ((0.03,), (0.03,)),
        (
            (0.02, None, 0.01),
            (0.02, None, 0.02),
        ),  # a comparison without a test is not counted
    ],
)
def test_holm_by_hand(
    given: tuple[float | None, ...], corrected: tuple[float | None, ...]
) -> None:
    comparisons = with_p(*given)
    holm(comparisons)
    assert [c.p_holm for c in comparisons] == [
        value if value is None else pytest.approx(value) for value in corrected
    ]
    assert [c.p for c in comparisons] == list(given)


def errors(
    rates: list[float], seeds: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """For each rate, whether each of 500 examples is got wrong, `(seeds, 500)`."""
    return [generator.random((seeds, 500)) < rate for rate in rates]


def test_bootstrap_covers_a_known_difference() -> None:
    generator, covered = np.random.default_rng(0), 0
    for repeat in range(100):
        wrong_a, wrong_b = errors([0.2, 0.1], 3, generator)
        low, high = bootstrap_examples(wrong_a, wrong_b, resamples=1000, seed=repeat)
        covered += low <= 500 * (0.2 - 0.1) <= high
    # 95 in expectation; outside of 88 to 100 in less than one of 300 experiments.
    assert 88 <= covered <= 100


def test_bootstrap_is_as_wide_as_the_normal_interval() -> None:
    wrong_a, wrong_b = errors([0.2, 0.1], 3, np.random.default_rng(1))
    difference = wrong_a.mean(0) - wrong_b.mean(0)
    low, high = bootstrap_examples(wrong_a, wrong_b)
    half = 1.96 * difference.std() * math.sqrt(500)
    assert low == pytest.approx(difference.sum() - half, abs=0.06 * half)
    assert high == pytest.approx(difference.sum() + half, abs=0.06 * half)
    assert bootstrap_examples(wrong_a, wrong_b) == (
        low,
        high,
    )  # its own seed, nobody else's
    assert bootstrap_examples(wrong_a, wrong_a) == (0.0, 0.0)


def test_a_sentence_says_what_was_tested() -> None:
    first, second = (
        paired("a", "b", "test_errors", A, B),
        paired("c", "b", "test_errors", B, A),
    )
    first.examples_low, first.examples_high = 1.0, 3.0
    holm([first, second])
    said = first.sentence()
    assert said.startswith(
        "a - b: +1.8 test_errors on average over 5 paired seeds, 95% interval [-0.04"
    )
    assert (
        f"p = {first.p:.2g} (Holm: {first.p_holm:.2g}); bootstrap over test examples [+1, +3]"
        in said
    )
    assert (
        first.as_dict()["p_holm"] == first.p_holm == pytest.approx(2 * (first.p or 0))
    )


def test_the_interval_of_a_mean() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # std 1.5811; t(0.975, 4) = 2.7764
    assert interval(values) == pytest.approx([3 - 1.9632, 3 + 1.9632], abs=1e-4)
    assert interval(values[:4]) is None
