from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.analyses.steps import time_and_memory
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished
from kd_lightning.runs.launch import launch
from tests.training.small import CONFIGS


def trained(folder: Path, units: int) -> Finished:
    files = [
        "trainer.yaml",
        "data/digits.yaml",
        "teachers/digits_mlp.yaml",
        "loggers/csv.yaml",
    ]
    argv = ["fit", *(word for name in files for word in ("-c", str(CONFIGS / name)))]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    launch([*argv, *quick, f"--model.network.hidden=[{units}]", f"--run.dir={folder}"])
    return Finished(0, folder, {})


def test_steps_of_a_wider_network_take_longer_and_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    runs = {
        "narrow": [trained(tmp_path / "narrow", 8)],
        "wide": [trained(tmp_path / "wide", 8000)],
    }
    rows = time_and_memory(
        runs, tmp_path, "narrow", ["narrow", "wide"], steps=3, rounds=1
    )
    found = {(row.run, row.metric): row.values for row in rows}
    assert found["narrow", "step_time_relative_to_narrow"] == [1.0]
    assert found["wide", "step_time_relative_to_narrow"][0] > 1
    assert found["wide", "step_memory_relative_to_narrow"][0] > 1


def test_a_run_that_cannot_start_again_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: nothing")
    with pytest.raises(UserError, match="cannot be run again"):
        time_and_memory({"a": [Finished(0, tmp_path, {})]}, tmp_path, "a", ["a"])
