"""Stratified subsets of a training set, and its division into training and validation rows.

Subsets are nested: the samples of a 1% subset are part of the 10% subset with the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import hashed


@dataclass(frozen=True)
class TrainingSplit:
    """Rows of the training samples by use, int64 each.

    Attributes:
        train: `(n,)`, rows to train on.
        withheld: `(m,)`, rows whose label is withheld.
        validation: `(v,)`, rows to validate on.
    """

    train: Tensor
    withheld: Tensor
    validation: Tensor


def stratified_rank(target: Tensor, index: Tensor, *parts: int | str) -> Tensor:
    """Rank each sample within its class, in a random order that is a function of (parts, index).

    The samples with a rank below f are the fraction f of every class.

    Args:
        target: int64 `(n,)`, class of each sample.
        index: int64 `(n,)`, row of each sample in its source split.
        parts: seed and purpose of the order.

    Returns:
        float64 `(n,)` in [0, 1): place within the class, divided by the size of the class.
    """
    key = hashed(index, *parts)
    # Two stable sorts give the samples by class, and by key within each class.
    by_key = torch.argsort(key, stable=True)
    by_class = torch.argsort(target[by_key], stable=True)
    order = by_key[by_class]

    # torch.bincount would return an empty tensor for no samples.
    counts = torch.zeros(1, dtype=torch.int64)
    if len(target) > 0:
        counts = torch.bincount(target)
    starts = torch.cumsum(counts, 0) - counts
    sorted_target = target[order]
    place = torch.arange(len(target)) - starts[sorted_target]
    rank = torch.empty(len(target), dtype=torch.float64)
    rank[order] = place.double() / counts[sorted_target].double()
    return rank


def split_training_rows(
    target: Tensor,
    seed: int,
    validation: float,
    fraction: float,
    label_fraction: float,
) -> TrainingSplit:
    """Divide the training samples, stratified by class.

    Args:
        target: int64 `(N,)`, the class of each training sample.
        seed: seed of the division.
        validation: fraction to validate on.
        fraction: fraction of the other samples to train on.
        label_fraction: fraction of these whose label is available.

    Raises:
        UserError: if no training sample remains.
    """
    index = torch.arange(len(target))
    # Strata count from 0; samples without a label (-100) are a stratum of their own.
    stratum = target - target.min()
    is_validation = stratified_rank(stratum, index, seed, "validation") < validation
    rest = index[~is_validation]
    rank = stratified_rank(stratum[rest], rest, seed, "fraction")
    train = rest[rank < fraction]
    if not len(train):
        raise UserError(
            "data: no training sample remains; decrease data.validation or increase data.fraction"
        )
    # One ranking serves both fractions, so the labeled samples are among the training samples.
    withheld = rest[rank >= fraction * label_fraction]
    return TrainingSplit(train, withheld, index[is_validation])


def check_fraction(name: str, value: float, *, zero: bool = False) -> None:
    """Check that an option is a fraction.

    Args:
        name: name of the option.
        value: its value.
        zero: whether 0 is allowed.

    Raises:
        UserError: if the value is not in (0, 1], or in [0, 1] if `zero` is set.
    """
    if 0 < value <= 1 or (zero and value == 0):
        return
    interval = "[0, 1]" if zero else "(0, 1]"
    raise UserError(f"{name} must be a fraction in {interval}, got {value}")


def check_classes(name: str, classes: list[int], num_classes: int) -> None:
    """Check that an option names existing classes.

    Args:
        name: name of the option.
        classes: class ids that the option names.
        num_classes: number of classes of the data.

    Raises:
        UserError: if a class id does not exist.
    """
    for class_id in classes:
        if not 0 <= class_id < num_classes:
            raise UserError(
                f"{name}: no such class {class_id}; the classes are 0 to {num_classes - 1}"
            )
