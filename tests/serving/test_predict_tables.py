"""`kd predict RUN|EXPORT INPUT...` on rows of tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.data.tabular import tables
from tests.runs import Kd, Outcome

LAST = Path("checkpoints") / "last.ckpt"


def fit(kd: Kd, *arguments: str) -> None:
    outcome = kd(
        *("fit", "-c", "configs/trainer.yaml", "--trainer.max_epochs=1", *arguments),
        *("--model.network.hidden=[4]", "--run.dir=run"),
    )
    assert outcome.code == 0, outcome.err


def rows_of(outcome: Outcome) -> list[dict[str, str]]:
    assert outcome.code == 0, outcome.err
    return list(csv.DictReader(io.StringIO(outcome.out)))


def test_rows_are_encoded_like_the_training_rows(kd: Kd, tmp_path: Path) -> None:
    tables.write(tmp_path / "train.csv", tables.lines_of(60))
    lines = tables.lines_of(12, seed=1)
    tables.write(tmp_path / "test.csv", lines)
    fit(
        kd,
        *("-c", "configs/data/tabular.yaml", f"--data.root={tmp_path}"),
        *("--data.file=null", "--data.train_file=train.csv"),
        *("--data.test_file=test.csv", "--data.target=species"),
        *("--data.categorical=[city]", "--model=kd_lightning.ClassifierModule"),
        "--model.network=kd_lightning.models.MLP",
    )
    kd("predict", f"--ckpt_path={Path('run') / LAST}", "--run.dir=stored")
    logits = load_file(Path("stored") / "predictions.safetensors")["logits"]
    # Columns in another order, without the target, and one that the network does not read.
    new = tmp_path / "new.csv"
    rows = [f"{city},note,{age},{income}" for age, city, income, _ in lines]
    new.write_text("\n".join(["city,extra,age,income", *rows]) + "\n")

    by_run = rows_of(kd("predict", "run", str(new), "--batch-size", "5"))

    assert len(by_run) == 12
    for row, probabilities in zip(by_run, logits.softmax(-1), strict=True):
        assert row["class"] == ("cat", "dog")[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(
            float(probabilities.max()), abs=1e-6
        )

    exported = kd("export", "run", "--format", "torch-export", "--output", "export")
    assert exported.code == 0, exported.err
    by_export = rows_of(kd("predict", "export", str(new)))
    assert [row["class"] for row in by_export] == [row["class"] for row in by_run]

    # A bad row is named by its line.
    new.write_text("city,age,income\nBonn,7,1.5\nBonn,old,1.5\nBonn,7\nUlm,7,1\n")
    stopped = kd("predict", "export", str(new))
    skipped = kd("predict", "export", str(new), "--on-error", "skip")
    assert stopped.code == 2
    assert "new.csv:3: column 'age' must hold numbers" in stopped.err
    assert len(stopped.err.strip().splitlines()) == 1
    assert [row["input"] for row in rows_of(skipped)] == [f"{new}:2"]
    assert "new.csv:4: 2 fields, but the first line names 3 columns" in skipped.err
    assert "new.csv:5: column 'city' has a category" in skipped.err

    new.write_text("city,income\nBonn,1.5\n")
    lacking = kd("predict", "export", str(new))
    assert lacking.code == 2
    assert "has no column 'age', which the network reads" in lacking.err

    new.write_text("age,age,city,income\n1,2,Bonn,3\n")
    double = kd("predict", "export", str(new))
    assert double.code == 2
    assert "2 columns have the name 'age'" in double.err

    new.write_text("age,city,income\n")
    empty = kd("predict", "export", str(new))
    assert empty.code == 2
    assert "the inputs hold no samples" in empty.err


def test_regression_gives_values(kd: Kd, tmp_path: Path) -> None:
    tables.write(tmp_path / "table.csv", tables.lines_of(60))
    fit(
        kd,
        *("-c", "configs/data/tabular.yaml", f"--data.root={tmp_path}"),
        *("--data.target=income", "--data.features=[age]"),
        "--data.task=kd_lightning.tasks.Regression",
        *("-c", "configs/teachers/diabetes_mlp.yaml"),
    )
    new = tmp_path / "new.csv"
    new.write_text("age\n3\n80\n")

    rows = rows_of(kd("predict", "run", str(new)))

    assert list(rows[0]) == ["input", "income"]
    assert float(rows[0]["income"]) != float(rows[1]["income"])
