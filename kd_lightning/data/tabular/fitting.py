"""Fits the encoding of features to the training rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.tabular.features import (
    NUMERIC_REMEDY,
    CategoricalFeature,
    Feature,
    FeatureEncoder,
    NumericFeature,
    UnknownCategory,
    column_of,
    refuse_missing,
)
from kd_lightning.data.tabular.files import Table
from kd_lightning.errors import UserError
from kd_lightning.tasks.columns import (
    Column,
    Numbers,
    Texts,
    as_numbers,
    as_texts,
    distinct,
    is_missing,
)

Impute = Literal["mean", "median", "most_frequent"]


def fit_features(
    table: Table,
    names: Sequence[str],
    categorical: Sequence[str],
    rows: NDArray[np.int64],
    standardize: bool,
    impute: Impute | None,
    unknown: UnknownCategory,
) -> FeatureEncoder:
    """Compute fill values, categories, means and standard deviations of the training rows.

    Args:
        table: the training file.
        names: the columns to use.
        categorical: those among them that hold categories.
        rows: int64 `(n,)`, the rows to train on.
        standardize: subtract the mean of each column of numbers and divide by its standard
            deviation.
        impute: how to fill in missing values; `None`: refuse them. Categories are always filled in
            with the most frequent one.
        unknown: see CategoricalFeature.

    Raises:
        UserError: if a column is absent, or if its values do not fit.
    """
    features: list[Feature] = []
    for name in names:
        column = column_of(table, name, "data.features")
        if impute is None:
            refuse_missing(name, column)
        elif bool(is_missing(column[rows]).all()):
            raise UserError(
                f"column {name!r} has no value in any training row to impute from"
            )
        if name in categorical:
            texts = as_texts(column)[rows]
            features.append(_fit_categorical(name, texts, impute, unknown))
        else:
            numbers = as_numbers(name, column, NUMERIC_REMEDY)[rows]
            features.append(_fit_numeric(name, numbers, standardize, impute))
    return FeatureEncoder(tuple(features))


def _fit_categorical(
    name: str,
    texts: Texts,
    impute: Impute | None,
    unknown: UnknownCategory,
) -> CategoricalFeature:
    fill: str | None = None
    if impute is not None:
        present = texts[texts != ""]
        fill = str(_most_frequent(present))
    return CategoricalFeature(name, distinct(texts), fill, unknown)


def _fit_numeric(
    name: str,
    numbers: Numbers,
    standardize: bool,
    impute: Impute | None,
) -> NumericFeature:
    fill = None
    if impute is not None:
        fill = _fill_value(numbers[~np.isnan(numbers)], impute)
        numbers = np.where(np.isnan(numbers), fill, numbers)
    if not standardize:
        return NumericFeature(name, mean=0.0, std=1.0, fill=fill)
    mean = _mean(numbers)
    # A constant column becomes zero.
    std = 1.0
    if numbers.min() < numbers.max():
        squares = (numbers - mean) ** 2
        std = math.sqrt(_mean(squares))
    return NumericFeature(name, mean, std, fill)


def _fill_value(numbers: Numbers, impute: Impute) -> float:
    if impute == "mean":
        return _mean(numbers)
    if impute == "median":
        return float(np.median(numbers))
    return float(_most_frequent(numbers))


def _mean(numbers: Numbers) -> float:
    # Exact sums: checkpoints and caches compare statistics, which must not depend on the order in
    # which a machine adds.
    return math.fsum(numbers.tolist()) / len(numbers)


def _most_frequent(values: Column) -> str | float:
    """The most frequent value; the smallest one among several."""
    different, counts = np.unique(values, return_counts=True)
    most: str | float = different[counts.argmax()].item()
    return most
