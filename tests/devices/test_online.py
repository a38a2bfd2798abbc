"""Two processes (gloo) train students that teach each other, and a mean teacher, as one process does.

This file is also the program that the two processes run: `python -m tests.devices.test_online FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import KD, Consistency, CrossEntropy
from kd_lightning.teachers import EMATeacher
from kd_lightning.training import DistillationModule, MutualModule, TrainingModule
from tests.training.small import mlp, trainer

ROOT = Path(__file__).parents[2]
FRACTION = 0.046
"""51 samples: five steps of ten samples each, and one of a single one."""

SCHEMES = ["in turn", "together", "mean teacher"]


def module_of(scheme: str) -> TrainingModule:
    torch.manual_seed(0)
    if scheme == "mean teacher":
        losses = {"ce": CrossEntropy(), "soft": Consistency(weight=10.0, rampup=0)}
        return DistillationModule(mlp(), EMATeacher(0.8), losses)
    update: Any = scheme
    students = [mlp(8), mlp(12), mlp(16)]
    losses = {"ce": CrossEntropy(), "kd": KD(temperature=1.0)}
    return MutualModule(students[0], [*students[1:]], losses, update=update)


def learned(scheme: str, world_size: int) -> dict[str, Tensor]:
    """The weights and the losses after two epochs on partly labelled data."""
    module = module_of(scheme)
    strategy: dict[str, Any] = {}
    if world_size > 1:
        unused = "_find_unused_parameters_true" if scheme == "in turn" else ""
        strategy = {"devices": 2, "strategy": f"ddp{unused}"}
    run = trainer(precision="64-true", max_epochs=2, limit_val_batches=0, **strategy)
    data = DigitsDataModule(
        batch_size=10 // world_size, fraction=FRACTION, label_fraction=0.7
    )
    run.fit(module, datamodule=data)
    logged = {name: value.double() for name, value in run.callback_metrics.items()}
    return {**logged, **module.state_dict()}


def program(folder: Path) -> None:
    """What one of the two processes does; Lightning starts the second itself."""
    seen = {scheme: learned(scheme, 2) for scheme in SCHEMES}
    torch.save(seen, folder / f"{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("online")
    command = [sys.executable, "-m", "tests.devices.test_online", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_processes_learn_what_one_does(
    scheme: str, both: list[dict[str, Any]]
) -> None:
    one, two, other = learned(scheme, 1), both[0][scheme], both[1][scheme]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-6, atol=1e-7), name
        assert torch.equal(two[name], other[name]), name


if __name__ == "__main__":
    program(Path(sys.argv[1]))
