"""The tables inside scikit-learn's wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets

from kd_lightning.data import SklearnTableDataModule
from kd_lightning.data.tabular.sklearn_tables import TABLES
from tests.training.small import complaint


@pytest.mark.parametrize(
    ("name", "task", "features", "outputs", "samples"),
    [
        ("breast_cancer", "classification", 30, 2, 569),
        ("wine", "classification", 13, 3, 178),
        ("iris", "classification", 4, 3, 150),
        ("diabetes", "regression", 10, 1, 442),
        ("linnerud", "regression", 3, 3, 20),
    ],
)
def test_each_table(
    name: str, task: str, features: int, outputs: int, samples: int
) -> None:
    spec = SklearnTableDataModule(name).spec
    assert (spec.data, spec.task) == (name, task)
    assert (spec.input_shape, spec.num_classes) == ((features,), outputs)
    assert sum(spec.samples.values()) == samples


@pytest.mark.parametrize("name", TABLES)
def test_checkpoints_hold_plain_values(name: str, tmp_path: Path) -> None:
    module = SklearnTableDataModule(name)
    state = {"data": module.checkpoint_state(), "spec": module.spec.to_dict()}
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_classes_have_their_names() -> None:
    module = SklearnTableDataModule("breast_cancer")
    content = datasets.load_breast_cancer()
    assert module.spec.classes == ("benign", "malignant")
    table = module.table("test")
    row = np.flatnonzero(content.data[:, 0] == table["mean radius"][0])[0]
    assert table["class"][0] == content.target_names[content.target[row]]


def test_features_can_be_chosen() -> None:
    spec = SklearnTableDataModule("linnerud", features=["Chins", "Jumps"]).spec
    assert (spec.input_shape, spec.classes) == ((2,), ("Weight", "Waist", "Pulse"))


def test_an_unknown_table_is_one_line() -> None:
    message = complaint(lambda: SklearnTableDataModule("titanic"))
    assert message.startswith(
        "data.table: unknown table 'titanic'; valid tables: breast_cancer, "
    )
