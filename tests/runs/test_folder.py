"""Reading a run's folder, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.runs.folder import RunFolder, numeric_metrics

RECORD = {
    "status": "finished",
    "seed": 3,
    "metrics": {"test_errors": 5, "test_accuracy": 0.5},
    "started": "2026-01-01",
    "job_type": "distill",
    "wall_time_s": 1.5,
    "data": {"data": "digits"},
    "teacher": [{"path": "t.ckpt"}],
}


def test_a_run_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "config.yaml").write_text(
        "data: {class_path: kd_lightning.data.SpecialistDataModule}"
    )
    run = RunFolder(tmp_path)
    assert (run.status, run.seed, run.started, run.job_type) == (
        "finished",
        3,
        "2026-01-01",
        "distill",
    )
    assert run.metrics == {"test_errors": 5.0, "test_accuracy": 0.5}
    assert (run.wall_time_s, run.data, run.teacher_sources) == (
        1.5,
        {"data": "digits"},
        [{"path": "t.ckpt"}],
    )
    # The class has moved since this config was written.
    assert (
        run.config["data"]["class_path"]
        == "kd_lightning.specialists.SpecialistDataModule"
    )
    assert run.checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert not run.is_cache


def test_a_run_is_current_while_it_trains(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.status, run.metrics, run.record) == ("", {}, {})
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    assert run.status == "running"
    (tmp_path / "manifest.json").write_text("{}")
    assert run.is_cache


@pytest.mark.parametrize("text", [None, "[", "- a list"])
def test_a_damaged_folder_is_reported(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml"):
        _ = run.config
    with pytest.raises(UserError, match=r"run\.json"):
        _ = run.seed


def test_only_numbers_are_metrics() -> None:
    logged: dict[str, Any] = {
        "loss": 1,
        "best": True,
        "_step": 4,
        "note": "x",
        "nll": 0.5,
    }
    assert numeric_metrics(logged) == {"loss": 1.0, "nll": 0.5}
