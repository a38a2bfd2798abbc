"""The tables inside scikit-learn's wheel: real data, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack, cast

import numpy as np

from kd_lightning.data.tabular.base import TableDataModule
from kd_lightning.data.tabular.files import Table
from kd_lightning.data.tabular.options import TableOptions
from kd_lightning.errors import UserError
from kd_lightning.tasks.base import Task
from kd_lightning.tasks.classification import Classification
from kd_lightning.tasks.columns import Numbers
from kd_lightning.tasks.regression import Regression


@dataclass(frozen=True)
class SklearnTable:
    """One of scikit-learn's tables.

    Attributes:
        task: what is predicted.
        target: the target columns; `None`: those that scikit-learn names.
        options: arguments of its loader.
    """

    task: Callable[[], Task]
    target: tuple[str, ...] | None
    options: dict[str, bool]


TABLES = {
    "breast_cancer": SklearnTable(Classification, ("class",), {}),
    "diabetes": SklearnTable(Regression, ("progression",), {"scaled": False}),
    "iris": SklearnTable(Classification, ("class",), {}),
    "linnerud": SklearnTable(Regression, None, {}),
    "wine": SklearnTable(Classification, ("class",), {}),
}


class SklearnTableDataModule(TableDataModule):
    """Small real tables from scikit-learn: breast_cancer, diabetes, iris, linnerud or wine.

    They have no official split; `test_fraction` of the samples is the test set.

    Args:
        table: which one. diabetes (442 samples, one real target) and linnerud (20 samples, three
            real targets) are for regression, the others for classification.
        options: features, standardize, validation and others; see TableSettings.

    Raises:
        UserError: for an unknown table or an option out of range.
    """

    def __init__(self, table: str = "breast_cancer", **options: Unpack[TableOptions]) -> None:
        if table not in TABLES:
            raise UserError(
                f"data.table: unknown table {table!r}; valid tables: {', '.join(TABLES)}"
            )
        described = TABLES[table]
        self._content = _load(table)
        _, targets = self._content
        super().__init__(table, described.task(), list(targets), **options)

    @property
    def has_test_table(self) -> bool:
        return False

    def read(self, split: str) -> Table:
        """All samples of the table."""
        features, targets = self._content
        return {**features, **targets}


def _load(name: str) -> tuple[Table, Table]:
    """The feature columns and the target columns of a table."""
    # Importing scikit-learn takes half a second, which other data need not wait for.
    from sklearn import datasets

    described = TABLES[name]
    content = getattr(datasets, f"load_{name}")(**described.options)
    features = _columns(list(content.feature_names), content.data)
    names = content.target_names if described.target is None else described.target
    targets = _columns(list(names), content.target.reshape(len(content.target), -1))
    classes = content.get("target_names")
    if described.task is Classification:
        # The names of the classes instead of their numbers.
        targets = {names[0]: np.asarray(classes, dtype=np.str_)[content.target]}
    return features, targets


def _columns(names: list[str], values: Numbers) -> Table:
    table: Table = {}
    for at, name in enumerate(names):
        table[name] = cast(Numbers, values[:, at].astype(np.float64))
    return table
