"""Hints, from Romero et al. 2015, section 2.2, and the parts of a regressor: convolutions and batch normalization."""

from __future__ import annotations

import math

Map = list[list[float]]
"""(H, W)"""
Maps = list[Map]
"""(C, H, W): one sample's features."""
Kernel = list[Maps]
"""(to, from, height, width), of a transposed convolution (from, to, height, width)."""


def convolved(
    features: Maps, weight: Kernel, bias: list[float], stride: int = 1, padding: int = 0
) -> Maps:
    """y_o[i, j] = b_o + sum over c, k, l of w_o,c[k, l] x_c[i stride + k - padding, j stride + l - padding], zeros outside."""
    rows, columns = len(features[0]), len(features[0][0])
    tall, wide = len(weight[0][0]), len(weight[0][0][0])
    height, width = (
        (rows + 2 * padding - tall) // stride + 1,
        (columns + 2 * padding - wide) // stride + 1,
    )
    result = [[[b] * width for _ in range(height)] for b in bias]
    for o, kernels in enumerate(weight):
        for i in range(height):
            for j in range(width):
                for c, kernel in enumerate(kernels):
                    for k in range(tall):
                        for m in range(wide):
                            y, x = i * stride + k - padding, j * stride + m - padding
                            if 0 <= y < rows and 0 <= x < columns:
                                result[o][i][j] += kernel[k][m] * features[c][y][x]
    return result


def spread(
    features: Maps, weight: Kernel, bias: list[float], stride: int, padding: int
) -> Maps:
    """The transposed convolution: each x_c[i, j] adds w_c,o[k, l] x_c[i, j] to y_o[i stride + k - padding, ...]."""
    rows, columns = len(features[0]), len(features[0][0])
    tall, wide = len(weight[0][0]), len(weight[0][0][0])
    height, width = (
        (rows - 1) * stride - 2 * padding + tall,
        (columns - 1) * stride - 2 * padding + wide,
    )
    result = [[[b] * width for _ in range(height)] for b in bias]
    for c, channel in enumerate(features):
        for i in range(rows):
            for j in range(columns):
                for o in range(len(bias)):
                    for k in range(tall):
                        for m in range(wide):
                            y, x = i * stride + k - padding, j * stride + m - padding
                            if 0 <= y < height and 0 <= x < width:
                                result[o][y][x] += weight[c][o][k][m] * channel[i][j]
    return result


def batch_normalized(samples: list[Maps], eps: float = 1e-5) -> list[Maps]:
    """Each channel less its mean, over its standard deviation, both over samples and positions."""
    result: list[Maps] = [[] for _ in samples]
    for c in range(len(samples[0])):
        values = [v for sample in samples for line in sample[c] for v in line]
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(
            math.fsum((v - mean) ** 2 for v in values) / len(values) + eps
        )
        for at, sample in enumerate(samples):
            result[at].append(
                [[(v - mean) / deviation for v in line] for line in sample[c]]
            )
    return result


def rectified(features: Maps) -> Maps:
    return [[[max(v, 0.0) for v in line] for line in channel] for channel in features]


def squares(regressed: Maps, hint: Maps) -> list[float]:
    return [
        (u - r) ** 2
        for ours, theirs in zip(regressed, hint, strict=True)
        for a, b in zip(ours, theirs, strict=True)
        for r, u in zip(a, b, strict=True)
    ]


def paper(regressed: list[Maps], hints: list[Maps]) -> float:
    """1/2 ||u - r||^2, equation 3, mean over samples."""
    return math.fsum(
        0.5 * math.fsum(squares(r, u)) for r, u in zip(regressed, hints, strict=True)
    ) / len(hints)


def benchmark(regressed: list[Maps], hints: list[Maps]) -> float:
    """The mean of all squared differences."""
    values = [v for r, u in zip(regressed, hints, strict=True) for v in squares(r, u)]
    return math.fsum(values) / len(values)
