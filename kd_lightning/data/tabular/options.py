"""The constructor arguments that the datamodules for tables share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, get_args

from kd_lightning.data.subsets import check_fraction
from kd_lightning.data.tabular.features import UnknownCategory
from kd_lightning.data.tabular.fitting import Impute
from kd_lightning.errors import UserError


class TableOptions(TypedDict, total=False):
    """The constructor arguments that every table has; see TableSettings."""

    features: list[str] | None
    categorical: list[str]
    standardize: bool
    impute: Impute | None
    unknown_category: UnknownCategory
    test_fraction: float
    test_seed: int
    batch_size: int
    eval_batch_size: int
    validation: float
    fraction: float
    label_fraction: float
    split_seed: int
    resident: bool
    prefetch: int
    drop_last: bool
    balanced: bool


@dataclass(frozen=True)
class TableSettings:
    """The values of TableOptions, with defaults.

    Attributes:
        features: the columns that a network reads; default: all except the target columns.
        categorical: those among them that hold categories, each encoded as one input per category.
        standardize: scale each column of numbers to mean 0 and standard deviation 1.
        impute: how to fill in missing values: "mean", "median" or "most_frequent"; default: refuse
            them. Categories are filled in with the most frequent one in any case.
        unknown_category: "error" refuses categories that the training samples lack, "zeros" encodes
            them as zeros.
        test_fraction: fraction of the samples to test on if there is no test file, stratified by
            class.
        test_seed: of that split.
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per batch in validation, test and prediction.
        validation: fraction of the training set held out for validation, stratified by class; 0
            holds nothing out.
        fraction: fraction of the training samples to use, stratified by class.
        label_fraction: fraction of these that have a label; the others are unlabelled.
        split_seed: of the validation split and the fractions.
        resident: keep the samples on the accelerator if there is one and they fit.
        prefetch: batches to make ahead of time, in a thread.
        drop_last: leave out the last training batch of an epoch if it is smaller than the others.
        balanced: draw training samples with replacement, so that all classes are equally frequent.

    Raises:
        UserError: for an option out of range.
    """

    features: list[str] | None = None
    categorical: list[str] = field(default_factory=list)
    standardize: bool = True
    impute: Impute | None = None
    unknown_category: UnknownCategory = "error"
    test_fraction: float = 0.2
    test_seed: int = 0
    batch_size: int = 64
    eval_batch_size: int = 1000
    validation: float = 0.1
    fraction: float = 1.0
    label_fraction: float = 1.0
    split_seed: int = 0
    resident: bool = True
    prefetch: int = 0
    drop_last: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        check_fraction("data.fraction", self.fraction)
        check_fraction("data.label_fraction", self.label_fraction, zero=True)
        _check_open_fractions(self.validation, self.test_fraction)
        if min(self.batch_size, self.eval_batch_size) < 1 or self.prefetch < 0:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1, data.prefetch at "
                "least 0"
            )
        # jsonargparse checks choices on the command line, but not in Python code.
        _check_choice("data.impute", self.impute, (None, *get_args(Impute)))
        _check_choice(
            "data.unknown_category", self.unknown_category, get_args(UnknownCategory)
        )


def _check_open_fractions(validation: float, test_fraction: float) -> None:
    if not 0 <= validation < 1:
        raise UserError(
            f"data.validation must be a fraction in [0, 1), got {validation}; 0 holds nothing out"
        )
    if not 0 < test_fraction < 1:
        raise UserError(
            f"data.test_fraction must be a fraction in (0, 1), got {test_fraction}"
        )


def _check_choice(
    option: str,
    value: str | None,
    choices: Sequence[str | None],
) -> None:
    if value not in choices:
        valid = ", ".join(map(str, choices))
        raise UserError(f"{option}: unknown value {value!r}; valid values: {valid}")
