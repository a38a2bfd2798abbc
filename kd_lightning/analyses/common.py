"""Rows about the predictions of finished runs."""

from __future__ import annotations

from pathlib import Path

import torch

from kd_lightning.experiments.analysis import Row, Runs, Stage


def accuracy_on(runs: Runs, output: Path, stage: Stage, names: list[str]) -> list[Row]:
    """Compute the accuracy of runs on the samples of a stage, without augmentation.

    Args:
        runs: the finished runs.
        output: unused.
        stage: the samples, as each run's data selects them.
        names: the runs to evaluate.

    Returns:
        One row `{stage}_accuracy` per run.
    """
    rows = []
    for name in names:
        values = []
        for run in runs[name]:
            predictions = run.predictions(stage)
            predicted = predictions["logits"].argmax(1)
            correct = predicted == predictions["target"]
            # A mean of booleans needs a floating-point type.
            accuracy = correct.double().mean()
            values.append(float(accuracy))
        rows.append(Row(name, f"{stage}_accuracy", values))
    return rows


def ensemble(runs: Runs, output: Path, run: str) -> list[Row]:
    """Evaluate the ensemble of all seeds of a run on the test set.

    Args:
        runs: the finished runs.
        output: unused.
        run: the run whose seeds are the members.

    Returns:
        Rows `test_errors` and `test_accuracy` of the arithmetic mean of the members' distributions,
        then of their geometric mean, which is the mean of their logits.
    """
    members = [member.predictions("test") for member in runs[run]]
    # Double precision keeps rounding errors of the mean from changing predictions.
    logits = torch.stack([predictions["logits"].double() for predictions in members])
    target = members[0]["target"]
    means = {
        "arithmetic": logits.softmax(-1).mean(0),
        "geometric": logits.log_softmax(-1).mean(0),
    }
    rows = []
    for mean, scores in means.items():
        name = f"ensemble of {len(members)}, {mean} mean"
        wrong = scores.argmax(1) != target
        errors = float(wrong.sum())
        error_rate = float(wrong.double().mean())
        accuracy = 1 - error_rate
        rows.append(Row(name, "test_errors", [errors]))
        rows.append(Row(name, "test_accuracy", [accuracy]))
    return rows
