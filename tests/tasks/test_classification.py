"""The optional metrics of classification, against scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    recall_score,
    top_k_accuracy_score,
)

from kd_lightning.spec import Spec
from kd_lightning.tasks import Classification
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.runs import TEACHER, call
from tests.training.small import complaint

SPEC = Spec(data="data", num_classes=5, classes=("cat", "dog", "red fox", "a/b", "ü"))


def batches() -> list[tuple[Output, Batch]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        logits = torch.randn(40, 5, generator=generator)
        # The last class never occurs among the labels, but is predicted.
        target = torch.randint(4, (40,), generator=generator)
        target[::7] = UNLABELLED
        made.append(
            (Output(logits), Batch(torch.zeros(40, 1), target, torch.arange(40)))
        )
    return made


def test_metrics_of_classes() -> None:
    metrics = Classification(per_class=True, top_k=3).metrics(SPEC)
    logits = []
    labels = []
    for output, batch in batches():
        metrics.update(output, None, batch)
        labelled = batch.target != UNLABELLED
        logits.append(output.logits[labelled])
        labels.append(batch.target[labelled])
    target = torch.cat(labels).numpy()
    scores = torch.cat(logits).numpy()
    guess = scores.argmax(1)
    values = {name: float(value) for name, value in metrics.compute().items()}
    classes = list(range(5))
    expected = {
        "balanced_accuracy": balanced_accuracy_score(target, guess),
        "f1": f1_score(target, guess, labels=classes, average="macro", zero_division=0),
        "top3_accuracy": top_k_accuracy_score(target, scores, k=3, labels=classes),
    }
    recalls = recall_score(target, guess, labels=classes, average=None, zero_division=0)
    f1s = f1_score(target, guess, labels=classes, average=None, zero_division=0)
    for position, name in enumerate(["cat", "dog", "red_fox", "a_b", "_"]):
        expected[f"recall_{name}"] = recalls[position]
        expected[f"f1_{name}"] = f1s[position]
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert set(values) <= set(metrics.names())


def test_without_the_options_nothing_is_added() -> None:
    names = Classification().metrics(SPEC).names()
    plain = [
        "accuracy",
        "calibration_error",
        "errors",
        "nll",
        "teacher_agreement",
        "teacher_kl",
    ]
    assert names == plain


def test_wrong_options() -> None:
    assert "at least 2" in complaint(lambda: Classification(top_k=1))
    assert "more classes than the 5" in complaint(
        lambda: Classification(top_k=5).metrics(SPEC)
    )


def test_from_a_command_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = [
        "--data.task=kd_lightning.tasks.Classification",
        "--data.task.per_class=true",
    ]
    options = [*task, "--data.balanced=true", "--trainer.limit_train_batches=3"]
    weights = (
        "--model.losses={ce: {class_path: kd_lightning.losses.CrossEntropy, init_args: "
    )
    weights += "{label_smoothing: 0.1, class_weights: [1, 1, 1, 1, 1, 1, 1, 1, 1, 3]}}}"
    assert call(capfd, [*TEACHER, *options, weights]).code == 0
    header = (
        next(Path("runs").rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    )
    assert {"val_balanced_accuracy", "val_f1", "val_recall_7", "val_f1_7"} <= set(
        header
    )
