"""Which rows of a training set take part: stratified, seeded, and nested (1% of the rows lie within the 10%)."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import hashed


def stratified_rank(target: Tensor, index: Tensor, *parts: int | str) -> Tensor:
    """For each sample its place in [0, 1) within its class, in an order that is a function of (parts, index).

    Keeping the samples whose rank is below f keeps the fraction f of every class.
    """
    key = hashed(index, *parts)
    by_key = torch.argsort(key, stable=True)
    order = by_key[torch.argsort(target[by_key], stable=True)]
    counts = torch.bincount(target) if len(target) else torch.zeros(1, dtype=torch.int64)
    starts = torch.cumsum(counts, 0) - counts
    sorted_target = target[order]
    rank = torch.empty(len(target), dtype=torch.float64)
    rank[order] = (torch.arange(len(target)) - starts[sorted_target]).double() / counts[
        sorted_target
    ].double()
    return rank


def check_fraction(name: str, value: float, *, zero: bool = False) -> None:
    if not (0 < value <= 1 or (zero and value == 0)):
        raise UserError(f"{name} must be a fraction in {'[0' if zero else '(0'}, 1], got {value}")


def check_classes(name: str, wanted: list[int], num_classes: int) -> None:
    wrong = [c for c in wanted if not 0 <= c < num_classes]
    if wrong:
        raise UserError(f"{name}: no such class {wrong[0]}; the classes are 0 to {num_classes - 1}")
