"""Networks with lazy layers, as students and as teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule
from tests.training.small import complaint, copied, distillation, same, trainer


def lazy() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(10)
    )


def test_a_student_and_a_teacher(tmp_path: Path) -> None:
    data = DigitsDataModule()
    network = lazy()
    run = trainer(limit_train_batches=2)
    run.fit(ClassifierModule(network), datamodule=data)
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    teacher = ModelTeacher(checkpoint=str(tmp_path / "teacher.pt"), network=lazy())
    module = distillation(student=lazy(), teacher=teacher)
    run = trainer(limit_train_batches=2)
    run.fit(module, datamodule=data)
    assert teacher.network is not None
    assert same(copied(network), copied(teacher.network))


def test_initial_weights_depend_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for seed in ("0", "0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        torch.rand(1)
        module = ClassifierModule(lazy())
        module.attach(DigitsDataModule())
        made.append(copied(module.net))
    assert same(made[0], made[1])
    assert not same(made[1], made[2])


def test_a_teacher_without_weights() -> None:
    module = distillation(teacher=ModelTeacher(network=lazy()))
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert message == "the teacher's network has lazy layers that were never trained"


class Hidden(nn.Module):
    """Its lazy layer runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.aux = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        return out + self.aux(x.flatten(1)) if self.training else out


def test_a_lazy_layer_that_evaluation_does_not_run() -> None:
    message = complaint(lambda: ClassifierModule(Hidden()).attach(DigitsDataModule()))
    assert "lazy layers that it does not run in evaluation" in message
