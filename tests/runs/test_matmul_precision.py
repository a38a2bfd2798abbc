"""`--matmul_precision` holds for its own run alone, and counts in the key of an experiment's run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_lightning.experiments.keys import run_key
from kd_lightning.runs.launch import launch
from kd_lightning.training import TrainingModule

ARGV = [
    *(
        "fit",
        "-c",
        "configs/trainer.yaml",
        "-c",
        "configs/data/digits.yaml",
        "-c",
        "configs/teachers/digits_mlp.yaml",
    ),
    *(
        "-c",
        "configs/loggers/csv.yaml",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--data.fraction=0.1",
    ),
]


def test_each_run_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    begin = TrainingModule.on_train_epoch_start

    def note(module: TrainingModule) -> None:
        seen.append(torch.get_float32_matmul_precision())
        begin(module)

    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", note)
    launch([*ARGV, "--matmul_precision=medium", f"--run.dir={tmp_path}/a"])
    launch([*ARGV, f"--run.dir={tmp_path}/b"])
    assert seen == ["medium", "highest"]


def test_it_decides_a_result() -> None:
    a, b = run_key(ARGV), run_key([*ARGV, "--matmul_precision=medium"])
    assert {name for name in a if a[name] != b[name]} == {"matmul_precision"}
