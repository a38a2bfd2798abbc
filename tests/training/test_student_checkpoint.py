"""What a student's checkpoint holds, and that it loads strictly, with its teacher and without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses.base import DistillLoss, Probe, teacher_of
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.training import ClassifierModule, DistillationModule
from kd_lightning.types import Batch, Output
from kd_lightning.weights import KEY, network_weights
from tests.training.small import (
    complaint,
    copied,
    distillation,
    last,
    mlp,
    run_fit,
    same,
    samples,
    trainer,
)

ADAPTERS = {"losses.adapted.adapter.weight", "losses.adapted.adapter.bias"}


class Adapted(DistillLoss):
    """Logits brought to the teacher's by an adapter of its own."""

    def build(self, student: Probe, teacher: Probe | None) -> None:
        assert teacher is not None
        self.adapter: nn.Module = nn.Linear(
            student.output.logits.shape[1], teacher.output.logits.shape[1]
        )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        adapted: Tensor = self.adapter(student.logits)
        return (adapted - teacher_of(self, teacher).logits).square().mean()


class Scaled(Adapted):
    """A parameter made at once, besides the adapter that waits for the data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return self.scale * super().forward(student, teacher, batch)


@pytest.fixture
def teacher_copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A teacher that a test may delete."""
    return Path(shutil.copy(checkpoint, tmp_path / "teacher.ckpt"))


@pytest.fixture
def student_run(teacher_copy: Path, tmp_path: Path) -> RunResult:
    configs = ["pairs/digits_mlp256_mlp16.yaml", "methods/kd.yaml"]
    return run_fit(
        tmp_path / "student", configs, f"--model.teacher.checkpoint={teacher_copy}"
    )


def rewritten(run: RunResult, change: Callable[[dict[str, Tensor]], object]) -> Path:
    content = torch.load(last(run), weights_only=True)
    change(content["state_dict"])
    path = run.folder / "rewritten.ckpt"
    torch.save(content, path)
    return path


def adapted(seed: int, data: DigitsDataModule) -> DistillationModule:
    """The same student and teacher for each seed, with another adapter."""
    torch.manual_seed(7)
    module = distillation({"adapted": Adapted()})
    torch.manual_seed(seed)
    module.attach(data)
    return module


def test_holds_the_student_alone(student_run: RunResult, teacher_copy: Path) -> None:
    content = torch.load(last(student_run), weights_only=True)
    assert all(key.startswith("student.") for key in content["state_dict"])
    assert same(network_weights(content), copied(student_run.module.net))
    # The teacher is ready and in the module: its tensors were left out, not missing.
    assert any(
        key.startswith("teacher.") for key, _ in student_run.module.named_parameters()
    )
    assert content[KEY]["teacher"][0]["path"] == str(teacher_copy)
    assert content[KEY]["network"]["class_path"] == "kd_lightning.models.MLP"
    assert content[KEY]["spec"]["classes"] == list("0123456789")


def test_loads_with_its_teacher_and_without(
    student_run: RunResult, teacher_copy: Path, data: DigitsDataModule
) -> None:
    batch = samples(data, "test")
    logits = student_run.module.eval()(batch.inputs)
    keys = set()
    for there in (True, False):
        if not there:
            teacher_copy.unlink()
        loaded = DistillationModule.load_from_checkpoint(
            last(student_run), map_location="cpu"
        )
        assert torch.equal(loaded.eval()(batch.inputs), logits)
        (metrics,) = trainer().test(loaded, datamodule=data, verbose=False)
        assert metrics["test_errors"] == (logits.argmax(-1) != batch.target).sum()
        assert loaded.teacher.ready == there
        assert (
            ("test_teacher_agreement" in metrics)
            == ("test_teacher_kl" in metrics)
            == there
        )
        assert (loaded.teacher_note is None) == there
        keys.add(frozenset(loaded.state_dict()))
        outputs: Any = trainer().predict(loaded, datamodule=data)
        assert torch.allclose(
            torch.cat([o["logits"] for o in outputs]), logits, atol=1e-5
        )
    assert keys == {
        frozenset(f"student.{name}" for name in student_run.module.net.state_dict())
    }
    result = launch(
        [
            "test",
            f"--ckpt_path={last(student_run)}",
            f"--run.dir={student_run.folder}-test",
        ]
    )
    assert result.metrics["test_errors"] == metrics["test_errors"]


def test_is_strict_for_the_student(student_run: RunResult) -> None:
    changes: dict[str, Callable[[dict[str, Tensor]], object]] = {
        "Missing key": lambda state: state.pop("student.head.bias"),
        "Unexpected key": lambda state: state.update({"student.extra": torch.zeros(1)}),
        "size mismatch": lambda state: state.update(
            {"student.head.bias": torch.zeros(3)}
        ),
    }
    for words, change in changes.items():
        path = rewritten(student_run, change)
        with pytest.raises(RuntimeError, match=words):
            DistillationModule.load_from_checkpoint(path)
        arguments = ["test", f"--ckpt_path={path}", *own(student_run)]
        assert f"--ckpt_path {path}" in complaint(partial(launch, arguments))
    # A teacher's tensor that another program left in the file is no student's: it is passed over.
    path = rewritten(
        student_run,
        lambda state: state.update({"teacher.network.head.bias": torch.zeros(3)}),
    )
    loaded = DistillationModule.load_from_checkpoint(path)
    assert same(copied(loaded.net), copied(student_run.module.net))


def own(run: RunResult) -> list[str]:
    return ["-c", str(run.folder / "config.yaml"), f"--run.dir={run.folder}-other"]


def test_only_with_the_module_that_made_it(
    student_run: RunResult, data: DigitsDataModule
) -> None:
    message = complaint(
        lambda: trainer().fit(
            ClassifierModule(mlp()), datamodule=data, ckpt_path=str(last(student_run))
        )
    )
    assert "the checkpoint is not one of a ClassifierModule" in message


def test_an_adapter_is_trained_and_kept_but_not_deployed(
    tmp_path: Path, data: DigitsDataModule
) -> None:
    module, fit = adapted(0, data), trainer()
    start = copied(module.losses)
    fit.fit(module, datamodule=data)
    optimized = {
        id(p) for group in fit.optimizers[0].param_groups for p in group["params"]
    }
    assert {id(p) for p in module.losses.parameters()} <= optimized
    assert not any(
        torch.equal(tensor, start[name])
        for name, tensor in module.losses.state_dict().items()
    )
    fit.save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert {
        key for key in content["state_dict"] if not key.startswith("student.")
    } == ADAPTERS
    assert same(
        network_weights(content), copied(module.net)
    )  # what is deployed: names and tensors of the student


def test_an_adapter_is_restored_on_resume(
    tmp_path: Path, data: DigitsDataModule
) -> None:
    whole, first, second, fresh = (adapted(seed, data) for seed in (0, 0, 1, 1))
    trainer(max_epochs=2).fit(whole, datamodule=data)
    fit = trainer()
    fit.fit(first, datamodule=data)
    fit.save_checkpoint(tmp_path / "one.ckpt")
    trainer(max_epochs=2).fit(
        second, datamodule=data, ckpt_path=str(tmp_path / "one.ckpt")
    )
    assert same(copied(second), copied(whole))
    # Another seed makes another adapter: had it not been restored, the runs would differ.
    trainer(max_epochs=2).fit(fresh, datamodule=data)
    assert not same(copied(fresh), copied(whole))


def test_an_adapter_that_is_loaded_before_it_is_built(data: DigitsDataModule) -> None:
    first, second = adapted(0, data), distillation({"adapted": Adapted()})
    second.load_state_dict(first.state_dict())
    assert not set(second.state_dict()) & ADAPTERS
    second.attach(data)
    assert set(second.state_dict()) >= ADAPTERS
    assert same(copied(second), copied(first))


def test_a_loss_with_a_parameter_and_an_adapter(data: DigitsDataModule) -> None:
    first, second = (
        distillation({"adapted": Scaled()}),
        distillation({"adapted": Scaled()}),
    )
    first.attach(data)
    second.load_state_dict(first.state_dict())
    second.attach(data)
    assert same(copied(second.losses), copied(first.losses))
