"""Splits, subsets, targets and descriptions of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from kd_lightning.data import TabularDataModule
from kd_lightning.data.tabular.source import TableSource
from kd_lightning.spec import check_spec
from kd_lightning.tasks import (
    Classification,
    LanguageModelling,
    MultilabelClassification,
    Regression,
)
from kd_lightning.types import CLEAN, UNLABELLED
from tests.data.tabular.tables import HEADING, lines_of, write
from tests.training.small import complaint


def data(root: Path, **changes: Any) -> TabularDataModule:
    """The table of `tables.py`, in one file of 120 rows unless another is named."""
    settings: dict[str, Any] = {
        "target": "species",
        "root": str(root),
        "categorical": ["city"],
        "validation": 0.25,
    }
    if not any(name in changes for name in ("file", "train_file", "test_file")):
        settings["file"] = "table.csv"
    return TabularDataModule(**{**settings, **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "table.csv", lines_of(120))
    return tmp_path


def labels(source: TableSource) -> torch.Tensor:
    return source.target[source.rows]


def test_splits_are_stratified_and_fixed(root: Path) -> None:
    module = data(root)
    sources = {stage: module.source(stage) for stage in ("train", "validation", "test")}
    assert {stage: len(source) for stage, source in sources.items()} == {
        "train": 72,
        "validation": 24,
        "test": 24,
    }
    for source in sources.values():
        assert labels(source).float().mean() == 0.5
    assert not set(sources["train"].rows.tolist()) & set(
        sources["validation"].rows.tolist()
    )
    # The test set depends on its own seed alone.
    inputs = sources["test"].inputs
    other = data(root, split_seed=1, standardize=False).source("test").inputs
    same = data(root, split_seed=2, standardize=False).source("test").inputs
    assert torch.equal(other, same)
    assert other.shape == inputs.shape == (24, 5)
    moved = data(root, test_seed=1, standardize=False).source("test").inputs
    assert not torch.equal(moved, same)


def test_a_batch_holds_what_the_file_holds(root: Path) -> None:
    module = data(root, features=["income", "age"], categorical=[], standardize=False)
    batch = module.source("train").batch(torch.tensor([3, 0]), CLEAN)
    inputs = cast(torch.Tensor, batch.inputs).numpy()
    table = module.table("train")
    for at in range(2):
        row = int(batch.index[at])
        expected = [float(table["income"][row]), float(table["age"][row])]
        np.testing.assert_allclose(inputs[at], expected, rtol=1e-6)
        assert module.spec.classes[int(batch.target[at])] == table["species"][row]
    assert (batch.split, batch.view) == ("train", CLEAN)


def test_standardization_sees_the_training_rows_alone(root: Path) -> None:
    module = data(root, fraction=0.5)
    source = module.source("train")
    held_out = set(module.source("validation").rows.tolist())
    fits = [row for row in range(len(source.inputs)) if row not in held_out]
    fitted = source.inputs[fits, 0].double()
    assert fitted.mean().abs() < 1e-6
    assert fitted.std(correction=0).item() == pytest.approx(1)
    # A student that trains on fewer samples sees the same inputs as its teacher.
    assert module.spec.mean == data(root).spec.mean
    assert module.fingerprint() == data(root).fingerprint()
    assert len(source) == 36


def test_two_files(root: Path) -> None:
    write(root / "test.csv", lines_of(30, seed=1))
    module = data(root, train_file="table.csv", test_file="test.csv")
    assert dict(module.spec.samples) == {"train": 90, "validation": 30, "test": 30}
    assert module.spec.source_samples == 120


def test_withheld_labels(root: Path) -> None:
    module = data(root, label_fraction=0.25)
    assert (labels(module.source("train")) == UNLABELLED).sum() == 54
    assert (labels(module.source("validation")) != UNLABELLED).all()
    real = data(
        root,
        target="income",
        task=Regression(),
        label_fraction=0.25,
        categorical=["city", "species"],
    )
    assert labels(real.source("train")).isnan().sum() == 54


def test_an_empty_target_is_unlabelled(root: Path) -> None:
    lines = lines_of(40)
    for line in lines[:4]:
        line[3] = ""
    write(root / "gaps.csv", lines)
    module = data(root, train_file="gaps.csv", test_file="table.csv", validation=0.0)
    assert (
        labels(module.source("train")).eq(UNLABELLED).tolist()
        == [True] * 4 + [False] * 36
    )
    assert module.spec.classes == ("cat", "dog")


def test_spec_of_each_task(root: Path) -> None:
    spec = data(root).spec
    assert (spec.task, spec.input_shape, spec.num_classes) == (
        "classification",
        (5,),
        2,
    )
    assert (spec.classes, spec.target_shape) == (("cat", "dog"), ())
    rest = {"features": ["city"], "validation": 0.0}
    spec = data(root, target=["age", "income"], task=Regression(), **rest).spec
    assert (spec.num_classes, spec.classes, spec.target_shape) == (
        2,
        ("age", "income"),
        (2,),
    )
    assert spec.input_shape == (3,)
    lines = [[*line[:3], str(row % 2), "0"] for row, line in enumerate(lines_of(20))]
    write(root / "labels.csv", lines, [*HEADING[:3], "wild", "small"])
    task = MultilabelClassification()
    spec = data(root, file="labels.csv", target=["wild", "small"], task=task).spec
    assert (spec.task, spec.num_classes) == ("multi-label classification", 2)
    assert (spec.classes, spec.target_shape) == (("wild", "small"), (2,))


def test_the_fingerprint_covers_samples_columns_and_preprocessing(root: Path) -> None:
    lines = lines_of(120)
    lines[7][0] = "91"
    write(root / "other.csv", lines)
    variants = [
        data(root),
        data(root, file="other.csv"),
        data(root, features=["age", "city"]),
        data(root, features=["city", "age", "income"]),
        data(root, standardize=False),
        data(root, impute="mean"),
        data(root, test_seed=1),
    ]
    fingerprints = [str(module.fingerprint()) for module in variants]
    assert len(set(fingerprints)) == len(variants)
    assert (
        str(data(root, batch_size=8, label_fraction=0.5).fingerprint())
        == fingerprints[0]
    )


def test_a_checkpoint_restores_the_encoding_without_the_training_file(
    root: Path,
) -> None:
    write(root / "test.csv", lines_of(30, seed=1))
    files = {"train_file": "table.csv", "test_file": "test.csv"}
    module = data(root, **files)
    state = module.checkpoint_state()
    spec = module.spec
    before = module.source("test")
    (root / "table.csv").unlink()
    again = data(root, **files)
    again.restore(state, spec)
    after = again.source("test")
    assert torch.equal(after.inputs, before.inputs)
    assert torch.equal(after.target, before.target)
    assert again.spec == spec


def test_a_teacher_of_other_statistics_is_refused_in_a_short_line(root: Path) -> None:
    teacher = data(root, validation=0.25).spec
    student = data(root, validation=0.5).spec
    message = complaint(lambda: check_spec("the teacher", teacher, student))
    assert message.startswith("the teacher expects inputs normalized by mean ")
    assert message.endswith("; 2 of 5 values differ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "kind"},
            "data.target: there is no column 'kind'; valid columns: age, city, ",
        ),
        ({"features": ["height"]}, "data.categorical: 'city' is not a feature"),
        (
            {"features": ["height"], "categorical": []},
            "data.features: there is no column 'height'; valid columns: age, city, ",
        ),
        (
            {"features": ["city", "species"]},
            "data.features: 'species' is a target column",
        ),
        (
            {"target": ["age", "species"]},
            "classification needs one target column, got age, species",
        ),
        ({"task": Regression()}, "column 'species' must hold numbers, but it holds "),
        ({"task": MultilabelClassification()}, "column 'species' must hold 0 or 1"),
        (
            {"task": LanguageModelling()},
            "the targets of language modelling cannot be read from columns of a table",
        ),
    ],
)
def test_wrong_columns_are_one_line(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in complaint(lambda: data(root, **changes).spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_file": "table.csv"},
            "set data.file, or else data.train_file and data.test_file",
        ),
        (
            {"file": "a", "train_file": "b", "test_file": "c"},
            "set data.file, or else data.train_file and data.test_file",
        ),
        ({"validation": 1.0}, "data.validation must be a fraction in [0, 1)"),
        ({"test_fraction": 0.0}, "data.test_fraction must be a fraction in (0, 1)"),
        ({"fraction": 0.0}, "data.fraction must be a fraction in (0, 1]"),
        (
            {"batch_size": 0},
            "data.batch_size and data.eval_batch_size must be at least 1",
        ),
        (
            {"impute": "mode"},
            "data.impute: unknown value 'mode'; valid values: None, mean, ",
        ),
        ({"unknown_category": "drop"}, "data.unknown_category: unknown value 'drop'"),
    ],
)
def test_wrong_options_are_one_line(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in complaint(lambda: data(root, **changes))


def test_a_class_that_the_training_file_lacks_is_one_line(root: Path) -> None:
    lines = lines_of(10)
    lines[2][3] = "emu"
    write(root / "test.csv", lines)
    module = data(
        root, train_file="table.csv", test_file="test.csv", task=Classification()
    )
    message = complaint(lambda: module.source("test"))
    assert message == (
        "column 'species' has a class that the training file lacks in 1 rows, such as 'emu'; "
        "the classes are cat, dog"
    )


def test_classes_that_are_spelled_alike_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number},{('a', 'b', 'A')[number % 3]}" for number in range(90)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    module = TabularDataModule(target="y", root=str(tmp_path), file="a.csv")
    assert len(module.target_names) == 3
    out = capsys.readouterr().out
    assert out.count("the classes 'A' and 'a' in column 'y' differ only") == 1


def test_rare_classes_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number},{'ab'[number % 2]}" for number in range(100)] + ["1,mistake"]
    cases: list[dict[str, Any]] = [
        {"file": "a.csv"},
        {"train_file": "a.csv", "test_file": "a.csv"},
    ]
    for files in cases:
        (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n")
        module = TabularDataModule(target="y", root=str(tmp_path), **files)
        assert module.target_names == ("a", "b", "mistake")
        module.source("test")
        out = capsys.readouterr().out
        assert (
            out.count("few samples have the classes 'mistake' (1) in column 'y'") == 1
        )
