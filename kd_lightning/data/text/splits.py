"""Divides the training samples between training and validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.data.subsets import stratified_rank
from kd_lightning.errors import UserError


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


def split_training_rows(
    target: Tensor, seed: int, validation: float, fraction: float, label_fraction: float
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
