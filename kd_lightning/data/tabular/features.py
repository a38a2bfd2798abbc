"""From the columns of a table to the inputs of a network, with statistics of the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.tabular.files import Table
from kd_lightning.errors import UserError
from kd_lightning.tasks.columns import (
    Column,
    Numbers,
    as_numbers,
    as_texts,
    is_missing,
    positions_among,
)

UnknownCategory = Literal["error", "zeros"]

NUMERIC_REMEDY = (
    "list it in data.categorical, or name the columns to use in data.features"
)
IMPUTE_REMEDY = "set data.impute to mean, median or most_frequent, or name the columns to use in data.features"


@dataclass(frozen=True)
class NumericFeature:
    """A column of numbers: one input, `(x - mean) / std`.

    Attributes:
        name: of the column.
        mean, std: of the training rows after imputation; 0 and 1 without standardization.
        fill: replaces missing values; `None` if they are refused.
    """

    name: str
    mean: float
    std: float
    fill: float | None

    @property
    def scaling(self) -> list[tuple[float, float]]:
        """What is subtracted from each input, and what it is divided by."""
        return [(self.mean, self.std)]

    def encode(self, column: Column) -> Numbers:
        """The inputs `(N, 1)` of N rows."""
        numbers = as_numbers(self.name, column, NUMERIC_REMEDY)
        if self.fill is not None:
            numbers = np.where(np.isnan(numbers), self.fill, numbers)
        scaled: Numbers = (numbers - self.mean) / self.std
        return scaled[:, None]


@dataclass(frozen=True)
class CategoricalFeature:
    """A column of categories: one input per category, 1 for the row's own and 0 for the others.

    Attributes:
        name: of the column.
        categories: of the training rows, in numerical or alphabetical order.
        fill: replaces missing values; `None` if they are refused.
        unknown: refuse other categories ("error"), or encode them as zeros ("zeros").
    """

    name: str
    categories: tuple[str, ...]
    fill: str | None
    unknown: UnknownCategory

    @property
    def scaling(self) -> list[tuple[float, float]]:
        """What is subtracted from each input, and what it is divided by: nothing."""
        return [(0.0, 1.0)] * len(self.categories)

    def encode(self, column: Column) -> Numbers:
        """The inputs `(N, C)` of N rows, for C categories.

        Raises:
            UserError: if a category is unknown and `unknown` is "error".
        """
        texts = as_texts(column)
        if self.fill is not None:
            texts = np.where(texts == "", self.fill, texts)
        places = positions_among(texts, self.categories)
        unknown = places < 0
        if self.unknown == "error" and unknown.any():
            raise UserError(
                f"column {self.name!r} has a category that the training rows lack in "
                f"{int(unknown.sum())} rows, such as {str(texts[unknown][0])!r}; set "
                "data.unknown_category=zeros to encode it as zeros"
            )
        # An unknown category has the place -1, which equals no column: its row is all zeros.
        columns = np.arange(len(self.categories))
        is_one = places[:, None] == columns
        one_hot: Numbers = is_one.astype(np.float64)
        return one_hot


Feature = NumericFeature | CategoricalFeature


@dataclass(frozen=True)
class FeatureEncoder:
    """Turns tables into inputs `(N, F)`.

    Attributes:
        features: in the order of the inputs.
    """

    features: tuple[Feature, ...]

    @property
    def scaling(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each of the F inputs, as far as they are scaled."""
        scaling = []
        for feature in self.features:
            scaling.extend(feature.scaling)
        return scaling

    def encode(self, table: Table) -> Tensor:
        """The inputs of all rows, float32 `(N, F)`.

        Raises:
            UserError: if a column is absent, or if one of its values cannot be encoded.
        """
        blocks = []
        for feature in self.features:
            column = column_of(table, feature.name, "data.features")
            # A feature with a fill value replaces what is missing.
            if feature.fill is None:
                refuse_missing(feature.name, column)
            blocks.append(feature.encode(column))
        return torch.from_numpy(np.concatenate(blocks, axis=1)).float()

    def state(self) -> list[dict[str, object]]:
        """All features in plain values."""
        return [dict(vars(feature)) for feature in self.features]

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, object]]) -> FeatureEncoder:
        """The encoder that `state` described."""
        features: list[Feature] = []
        for described in state:
            values = dict(described)
            # Only categories tell the kinds apart: the state holds plain values alone.
            if "categories" in values:
                values["categories"] = tuple(cast(Sequence[str], values["categories"]))
                features.append(CategoricalFeature(**values))  # type: ignore[arg-type]
            else:
                features.append(NumericFeature(**values))  # type: ignore[arg-type]
        return cls(tuple(features))


def column_of(table: Table, name: str, option: str) -> Column:
    """A column of a table.

    Args:
        table: the columns.
        name: of the column.
        option: that names the column, for the message.

    Raises:
        UserError: if there is no such column.
    """
    if name not in table:
        raise UserError(
            f"{option}: there is no column {name!r}; valid columns: {', '.join(table)}"
        )
    return table[name]


def refuse_missing(name: str, column: Column) -> None:
    """Raise a UserError if a value is missing."""
    missing = int(is_missing(column).sum())
    if missing > 0:
        raise UserError(
            f"column {name!r} has no value in {missing} of {len(column)} rows; {IMPUTE_REMEDY}"
        )


def check_features(
    names: Sequence[str],
    categorical: Sequence[str],
    target: Sequence[str],
) -> None:
    """Check the choice of columns.

    Args:
        names: the columns that a network reads.
        categorical: those that hold categories.
        target: the target columns.

    Raises:
        UserError: if there are no features, if a target is one, or if a category is none.
    """
    if not names:
        raise UserError("data.features: there is no column besides the target columns")
    for name in target:
        if name in names:
            raise UserError(f"data.features: {name!r} is a target column; remove it")
    for name in categorical:
        if name not in names:
            raise UserError(
                f"data.categorical: {name!r} is not a feature; the features are {', '.join(names)}"
            )
