"""What a user reads of a run: its summary, W&B's line, and the modes of its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.runs.launch import RunResult
from kd_lightning.runs.predictions import save_tensors
from kd_lightning.runs.report import report
from kd_lightning.runs.wandb import announce
from kd_lightning.training.module import TrainingModule

Capture = pytest.CaptureFixture[str]


def result(folder: Path, metrics: dict[str, float]) -> RunResult:
    """A run whose module the summary does not need."""
    return RunResult(folder, metrics, cast(TrainingModule, None))


def test_the_summary_begins_with_test_metrics(tmp_path: Path, capsys: Capture) -> None:
    metrics = {
        "learning_rate": 0.1,
        "train_loss": 1.0,
        "val_nll": 2.0,
        "test_errors": 3.0,
    }
    report("test", result(tmp_path, metrics))
    out = capsys.readouterr().out
    places = [out.index(name) for name in reversed(metrics)]
    assert places == sorted(places)


def test_the_summary_names_the_epoch_of_the_best_checkpoint(
    tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "run\x1b[1m"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"epoch": 6, "state_dict": {}}, folder / "checkpoints" / "best.ckpt")
    torch.save({"epoch": 9, "state_dict": {}}, folder / "checkpoints" / "last.ckpt")
    report("fit", result(folder, {"[red]x": 1.0}))
    out = capsys.readouterr().out
    assert "best.ckpt, after epoch 7\n" in out
    assert "last.ckpt\n" in out
    assert "[red]x" in out
    assert "\x1b[1m" not in out


@pytest.mark.parametrize(
    ("option", "variable", "mode", "line"),
    [
        ("auto", None, "offline", ""),
        ("auto", None, "online", "W&B: online\n"),
        ("auto", "offline", "offline", "wandb sync"),
        ("offline", None, "offline", "wandb sync"),
    ],
)
def test_only_users_of_wandb_hear_of_it(
    option: str,
    variable: str | None,
    mode: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    announce(mode, Path("runs/x"), asked=option != "auto")
    out = capsys.readouterr().out
    assert line in out
    assert bool(line) == bool(out)


def test_predictions_have_the_mode_of_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors({"index": torch.arange(3)}, tmp_path / "a.safetensors")
        (tmp_path / "b.txt").touch()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    modes = [path.stat().st_mode for path in tmp_path.iterdir()]
    assert modes == [0o100640] * 2
    assert load_file(tmp_path / "a.safetensors")["index"].tolist() == [0, 1, 2]
