"""Rows that several papers ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from kd_lightning.experiments.analysis import Row, Runs


def accuracy_on(
    runs: Runs, output: Path, stage: Literal["train", "validation", "test"], names: list[str]
) -> list[Row]:
    """Accuracy of each of the runs `names` on the samples of a stage, as it had them, without augmentation."""
    found = []
    for name in names:
        values = []
        for one in runs[name]:
            said = one.predictions(stage)
            values.append(float((said["logits"].argmax(1) == said["target"]).double().mean()))
        found.append(Row(name, f"{stage}_accuracy", values))
    return found


def ensemble(runs: Runs, output: Path, run: str) -> list[Row]:
    """Test errors of all seeds of a run together: the mean of their distributions, and of their logits."""
    said = [one.predictions("test") for one in runs[run]]
    logits, target = torch.stack([p["logits"].double() for p in said]), said[0]["target"]
    means = {"arithmetic": logits.softmax(-1).mean(0), "geometric": logits.log_softmax(-1).mean(0)}
    found = []
    for name, scores in means.items():
        wrong = scores.argmax(1) != target
        label = f"ensemble of {len(said)}, {name} mean"
        found += [
            Row(label, "test_errors", [float(wrong.sum())]),
            Row(label, "test_accuracy", [1 - float(wrong.double().mean())]),
        ]
    return found
