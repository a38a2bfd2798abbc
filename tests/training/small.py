"""Small networks, a quiet trainer and quick runs, for the tests of teachers and modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.models import MLP
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.teachers import ModelTeacher, Teacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import CLEAN, Batch

FAST = "--model.scheduler.init_args.max_lr=0.3"
"""One epoch is to teach something."""

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def trainer(**changes: Any) -> pl.Trainer:
    """One epoch on the CPU that writes and prints nothing."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return pl.Trainer(**{**settings, **changes})


def mlp(units: int = 16, classes: int = 10, **arguments: Any) -> MLP:
    return MLP([units], input_shape=[1, 8, 8], num_classes=classes, **arguments)


def shaky() -> nn.Sequential:
    """A network that says something else in train mode, and changes there even without an optimizer."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )


def still(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """An optimizer that leaves the weights as they are, so that every epoch sees the same losses."""
    return torch.optim.SGD(parameters, lr=0.0)


def distillation(
    losses: dict[str, DistillLoss] | None = None,
    teacher: Teacher | None = None,
    **arguments: Any,
) -> DistillationModule:
    """A student of 16 units; both losses and a live teacher unless others are given."""
    student = arguments.pop("student", None) or mlp()
    losses = (
        {"ce": CrossEntropy(weight=0.5), "kd": KD(4.0, weight=2.0)}
        if losses is None
        else losses
    )
    return DistillationModule(
        student, teacher or ModelTeacher(network=mlp(32)), losses, **arguments
    )


class Drawing(DigitsDataModule):
    """Digits that draw a number from the global generator, as a user's datamodule may."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        torch.rand(1)


def samples(data: DataModule, stage: str, count: int | None = None) -> Batch:
    """The first samples of a stage, or all, as one batch."""
    source = data.source(stage)
    return source.batch(torch.arange(count or len(source)), CLEAN)


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both hold the same names and bit for bit the same tensors."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def complaint(call: Callable[[], object]) -> str:
    """The one line of the UserError that the call must end with."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run_fit(folder: Path, configs: list[str], *arguments: str) -> RunResult:
    """`kd fit` on digits for an epoch, into that folder."""
    files = ["trainer.yaml", "data/digits.yaml", *configs, "loggers/csv.yaml"]
    named = [word for name in files for word in ("-c", str(CONFIGS / name))]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    return launch(["fit", *named, *quick, f"--run.dir={folder}", *arguments])


_teacher_runs: list[RunResult] = []


def teacher_run(factory: pytest.TempPathFactory) -> RunResult:
    """One trained teacher for all tests of a session, those of teachers and those of modules."""
    if not _teacher_runs:
        _teacher_runs.append(
            run_fit(
                factory.mktemp("runs") / "teacher", ["teachers/digits_mlp.yaml"], FAST
            )
        )
    return _teacher_runs[0]


def last(run: RunResult) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"
