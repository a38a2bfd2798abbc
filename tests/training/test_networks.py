"""Networks that this package did not write, as students under `kd fit`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet

from kd_lightning.data import DigitsDataModule
from kd_lightning.networks import build_network
from kd_lightning.runs.launch import RunResult
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.weights import KEY, load_weights, network_weights
from tests.training.small import complaint, copied, last, run_fit, same, samples

PAIR = ["pairs/digits_mlp256_mlp16.yaml", "methods/kd.yaml"]

OWN = """
from torch import Tensor, nn


class Wide(nn.Module):
    def __init__(self, width: int, num_classes: int = 2, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), activation or nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(x)}


class Stack(Wide):
    def __init__(self, more: list[nn.Module], num_classes: int = 2) -> None:
        super().__init__(12, num_classes)
        self.layers = nn.Sequential(*self.layers, *more)


def narrow(num_classes: int = 2) -> Wide:
    return Wide(4, num_classes)


def unnamed(num_classes: int = 2):
    return Wide(4, num_classes)


def strict(num_classes: int) -> Wide:
    return Wide(4, num_classes)
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module, in a file outside the package."""
    (tmp_path / "users_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_networks", raising=False)
    return "users_networks"


def rebuilt_as_it_was(run: RunResult, data: DigitsDataModule) -> None:
    """Checkpoint and nothing else make the same network again, and a teacher for others."""
    content = torch.load(last(run), weights_only=True)
    network = build_network(content[KEY]["network"])
    load_weights(network, network_weights(content), "here")
    assert same(copied(network), copied(run.module.net))
    batch = samples(data, "test", 32)
    teacher = ModelTeacher(str(last(run)))
    teacher.prepare(data)
    assert torch.equal(teacher(batch).logits, run.module.eval()(batch.inputs))
    loaded = DistillationModule.load_from_checkpoint(last(run))
    assert torch.equal(loaded.eval()(batch.inputs), teacher(batch).logits)


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    small = [
        "--data.channels=3",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
    ]
    teacher = run_fit(tmp_path / "teacher", ["teachers/digits_mlp.yaml"], *small)
    student = [
        "--model.student=torchvision.models.resnet18",
        f"--model.teacher.checkpoint={last(teacher)}",
    ]
    run = run_fit(tmp_path / "student", PAIR, *small, *student)
    assert isinstance(run.module.net, ResNet)
    assert run.module.net.fc.out_features == 10  # told by the data
    assert "val_teacher_kl" in run.metrics
    assert run.module.net.state_dict()["bn1.num_batches_tracked"] == 2
    rebuilt_as_it_was(run, DigitsDataModule(channels=3))


def test_a_network_of_the_users(
    own_file: str, tmp_path: Path, checkpoint: Path, data: DigitsDataModule
) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    student = [
        f"--model.student={own_file}.Wide",
        "--model.student.width=12",
        "--model.student.activation=torch.nn.Tanh",
    ]
    run = run_fit(tmp_path / "student", PAIR, teacher, *student)
    assert type(run.module.net).__module__ == own_file
    assert isinstance(run.module.net.get_submodule("layers.2"), torch.nn.Tanh)
    assert run.metrics["val_accuracy"] > 0.15
    rebuilt_as_it_was(run, data)
    # Where its file is gone, one line says so.
    sys.modules.pop(own_file)
    (tmp_path / f"{own_file}.py").unlink()
    message = complaint(lambda: ModelTeacher(str(last(run))).prepare(data))
    assert f"the network '{own_file}.Wide' cannot be imported" in message


def test_a_function_that_makes_a_network(
    own_file: str, tmp_path: Path, checkpoint: Path, data: DigitsDataModule
) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    run = run_fit(
        tmp_path / "student", PAIR, teacher, f"--model.student={own_file}.narrow"
    )
    assert type(run.module.net).__name__ == "Wide"
    rebuilt_as_it_was(run, data)
    complaint(
        lambda: run_fit(
            tmp_path / "unnamed", PAIR, teacher, f"--model.student={own_file}.unnamed"
        )
    )
    assert not (tmp_path / "unnamed").exists()


def test_a_network_with_a_list_of_modules(
    own_file: str, tmp_path: Path, checkpoint: Path, data: DigitsDataModule
) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    more = "--model.student.more=[{'class_path': 'torch.nn.Tanh'}]"
    student = [f"--model.student={own_file}.Stack", more]
    rebuilt_as_it_was(run_fit(tmp_path / "student", PAIR, teacher, *student), data)


def test_what_the_data_fills_in_needs_a_default(
    own_file: str, tmp_path: Path, checkpoint: Path
) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    said = complaint(
        lambda: run_fit(
            tmp_path / "student", PAIR, teacher, f"--model.student={own_file}.strict"
        )
    )
    assert "num_classes" in said
