"""The configs of training schemes without a finished teacher, from `kd fit` to a resumed run and an exported student."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.teachers import ModelTeacher
from tests.runs import Kd
from tests.training.small import CONFIGS

ONLINE = sorted((CONFIGS / "online").glob("*.yaml"))
COMMON = [
    *("-c", "configs/trainer.yaml", "-c", "configs/data/digits.yaml"),
    *("-c", "configs/loggers/csv.yaml", "--trainer.accelerator=cpu"),
    "--trainer.enable_progress_bar=false",
]


def arguments(path: Path, *more: str) -> list[str]:
    return ["fit", *COMMON, "-c", str(path), "--trainer.max_epochs=2", *more]


@pytest.mark.parametrize("path", ONLINE, ids=lambda path: str(path.stem))
def test_every_config_trains(path: Path, tmp_path: Path) -> None:
    argv = arguments(path, "--run.test=last", f"--run.dir={tmp_path}/run")
    result = launch(resolve_configs(argv))
    assert all(math.isfinite(value) for value in result.metrics.values())
    others = {"test_peer1_accuracy", "test_teacher_accuracy"}
    assert len(others & set(result.metrics)) == 1
    assert result.module.job_type == "distill"
    # The student is what another run loads.
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    teacher = ModelTeacher(str(last))
    data = DigitsDataModule()
    teacher.prepare(data)
    assert teacher.network is not None
    for name, value in result.module.net.state_dict().items():
        assert torch.equal(teacher.network.state_dict()[name], value)


@pytest.mark.parametrize("path", ONLINE, ids=lambda path: str(path.stem))
def test_every_config_can_be_tested_and_resumed(path: Path, kd: Kd) -> None:
    assert kd(*arguments(path, "--run.name=run")).code == 0
    last = Path("runs/run/checkpoints/last.ckpt")
    first = torch.load(last, weights_only=True)["state_dict"]
    outcome = kd("test", f"--ckpt_path={last}")
    assert (outcome.code, outcome.err) == (0, "")
    assert "test_accuracy" in outcome.out
    # Another schedule would be refused; the config's covers two epochs.
    outcome = kd("fit", f"--ckpt_path={last}", "--trainer.max_epochs=3")
    assert outcome.code == 2
    assert kd("fit", f"--ckpt_path={last}").code == 0
    again = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_mistakes_are_one_line(kd: Kd) -> None:
    mutual, average = ONLINE[1], ONLINE[0]
    outcome = kd(*arguments(mutual, "--model.peers=[]"))
    assert outcome.code == 2
    assert outcome.err == (
        "kd: mutual learning needs at least two students; name the others in model.peers\n"
    )
    outcome = kd(*arguments(average, "--data.copies=1"))
    assert outcome.code == 2
    assert "set data.copies=2" in outcome.err
    assert outcome.err.count("\n") == 1
