"""Hinton et al. 2015: softened distributions, their distillation loss, and means of several teachers."""

from __future__ import annotations

import math

Rows = list[list[float]]


def softened(row: list[float], temperature: float) -> list[float]:
    """q_i = exp(z_i / T) / sum_j exp(z_j / T), equation 1."""
    powers = [math.exp(z / temperature) for z in row]
    return [power / math.fsum(powers) for power in powers]


def soft_target_loss(student: Rows, targets: Rows, temperature: float) -> float:
    """T^2 sum_k p_k log(p_k / q_k), mean over rows, for given target distributions p."""
    rows = []
    for z, p in zip(student, targets, strict=True):
        q = softened(z, temperature)
        rows.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return temperature**2 * math.fsum(rows) / len(rows)


def kd(student: Rows, teacher: Rows, temperature: float) -> float:
    """The distillation loss for a single teacher's logits."""
    return soft_target_loss(
        student, [softened(v, temperature) for v in teacher], temperature
    )


def columns(row: Rows, temperature: float) -> list[tuple[float, ...]]:
    """For each class, what each member gives it."""
    return list(zip(*(softened(v, temperature) for v in row), strict=True))


def arithmetic_mean(
    members: list[Rows], weights: list[float], temperature: float
) -> Rows:
    """For each row of (B, M, K) logits, sum_m w_m p_m."""
    return [
        [
            math.fsum(w * p for w, p in zip(weights, c, strict=True))
            for c in columns(row, temperature)
        ]
        for row in members
    ]


def geometric_mean(
    members: list[Rows], weights: list[float], temperature: float
) -> Rows:
    """For each row of (B, M, K) logits, prod_m p_m^w_m, scaled to sum to one."""
    means = []
    for row in members:
        products = [
            math.prod(p**w for w, p in zip(weights, c, strict=True))
            for c in columns(row, temperature)
        ]
        means.append([product / math.fsum(products) for product in products])
    return means
