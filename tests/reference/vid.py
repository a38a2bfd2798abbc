"""The variational bound's Gaussian, from Ahn et al. 2019: a mean predicted from the student, a variance for each channel."""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[list[float]]
"""(to, from)"""


def softplus_variance(alpha: float, eps: float) -> float:
    """sigma^2 = log(1 + exp(alpha)) + eps."""
    return math.log(1 + math.exp(alpha)) + eps


def times(matrix: Matrix, vector: Vector) -> Vector:
    return [
        math.fsum(w * v for w, v in zip(row, vector, strict=True)) for row in matrix
    ]


def predicted(feature: Vector, first: Matrix, second: Matrix, third: Matrix) -> Vector:
    """The mean at one position: a 1x1 convolution is a matrix on the channels; ReLU after the first and the second."""
    hidden = [max(v, 0.0) for v in times(first, feature)]
    hidden = [max(v, 0.0) for v in times(second, hidden)]
    return times(third, hidden)


def negative_log_likelihood(mean: Vector, target: Vector, variance: Vector) -> float:
    """sum_c log sigma_c + (t_c - mu_c)^2 / (2 sigma_c^2), the constant 1/2 log 2 pi left out, at one position."""
    terms = zip(mean, target, variance, strict=True)
    return math.fsum(
        math.log(math.sqrt(v)) + (t - m) ** 2 / (2 * v) for m, t, v in terms
    )


def paper(samples: list[list[tuple[Vector, Vector]]], variance: Vector) -> float:
    """For each sample the (mean, target) of each position: summed over channels and positions, mean over samples."""
    totals = [
        math.fsum(negative_log_likelihood(m, t, variance) for m, t in sample)
        for sample in samples
    ]
    return math.fsum(totals) / len(totals)


def benchmark(samples: list[list[tuple[Vector, Vector]]], variance: Vector) -> float:
    """The mean over all elements."""
    return paper(samples, variance) / (len(samples[0]) * len(variance))
