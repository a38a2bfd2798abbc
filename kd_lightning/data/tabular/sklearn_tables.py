"""The tables inside scikit-learn's wheel: real data, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Unpack

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
        target: names of the target columns.
        has_classes: whether the target holds numbers of classes, which scikit-learn names.
        options: arguments of its loader.
    """

    task: Callable[[], Task]
    target: tuple[str, ...]
    has_classes: bool
    options: dict[str, bool] = field(default_factory=dict)


CLASSES = SklearnTable(Classification, ("class",), has_classes=True)
# Diabetes in its own units instead of scikit-learn's scaling, which has seen the test samples.
DIABETES = SklearnTable(
    Regression, ("progression",), has_classes=False, options={"scaled": False}
)
LINNERUD = SklearnTable(Regression, ("Weight", "Waist", "Pulse"), has_classes=False)

TABLES = {
    "breast_cancer": CLASSES,
    "diabetes": DIABETES,
    "iris": CLASSES,
    "linnerud": LINNERUD,
    "wine": CLASSES,
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

    def __init__(
        self, table: str = "breast_cancer", **options: Unpack[TableOptions]
    ) -> None:
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
        """No: the test split is drawn from the only table."""
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
    features = _columns(content.feature_names, content.data)
    if described.has_classes:
        # The names of the classes instead of their numbers.
        names = np.array(content.target_names, dtype=np.str_)
        return features, {described.target[0]: names[content.target]}
    values = content.target.reshape(len(content.target), -1)
    return features, _columns(described.target, values)


def _columns(names: Sequence[str], values: Numbers) -> Table:
    table: Table = {}
    for at, name in enumerate(names):
        # A plain string: checkpoints hold names, and no types of numpy.
        table[str(name)] = values[:, at].astype(np.float64)
    return table
