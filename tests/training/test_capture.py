"""A loss that is not finite: the message names term, side and step, and the capture replays it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.losses.logitmse import LogitMSE
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule, DistillationModule
from kd_lightning.training.capture import replay
from kd_lightning.training.module import TrainingModule
from kd_lightning.types import Batch, Output
from tests.training.small import (
    complaint,
    copied,
    distillation,
    mlp,
    same,
    shaky,
    trainer,
)

SEED = 5
ROW = 50
"""A training image that the first steps of an epoch do not show."""


class BrokenFor(nn.Module):
    """NaN for one training image, else a network of its own."""

    image: Tensor

    def __init__(self, row: int) -> None:
        super().__init__()
        self.body = mlp(32)
        image = DigitsDataModule().source("train").batch(torch.tensor([row]), -1).inputs
        assert isinstance(image, Tensor)
        self.register_buffer("image", image)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        broken = (images == self.image).flatten(1).all(1)
        return logits.masked_fill(broken[:, None], math.nan)


class Growing(DistillLoss):
    """Infinite after some calls, with finite outputs."""

    calls: Tensor

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        self.calls += 1
        return student.logits.square().mean() * (
            math.inf if self.calls > self.after else 1.0
        )


class BrokenImages(DigitsDataModule):
    """One training image holds NaN."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        broken = (batch.index == 20) & (batch.split == "train")
        batch.inputs = batch.inputs.masked_fill(broken[:, None, None, None], math.nan)
        return batch


def module_of(
    teacher: nn.Module, losses: dict[str, DistillLoss] | None = None
) -> DistillationModule:
    torch.manual_seed(SEED)
    return distillation(losses, ModelTeacher(network=teacher), student=shaky())


def failing(
    module: TrainingModule,
    folder: Path,
    data: DigitsDataModule | None = None,
    accumulate: int = 1,
) -> str:
    """The message of a fit that ends with a capture."""
    folder.mkdir(exist_ok=True)
    module.capture_folder = folder
    fit = trainer(max_epochs=3, accumulate_grad_batches=accumulate)
    return complaint(lambda: fit.fit(module, datamodule=data or DigitsDataModule()))


def only_capture(folder: Path) -> Path:
    (path,) = folder.glob("capture-*.pt")
    return path


def test_a_teacher_at_fault(tmp_path: Path) -> None:
    module = module_of(BrokenFor(ROW))
    message = failing(module, tmp_path)
    path = only_capture(tmp_path)
    content = torch.load(path, weights_only=True)
    batch_idx = content["batch_idx"]
    assert message.startswith(
        f"the loss became nan in epoch 0, at step {batch_idx} (batch "
    )
    assert "its term 'kd' is nan because the teacher's logits are not finite" in message
    assert str(path) in message
    assert "learning rate" not in message
    assert content["fault"] == "teacher"
    assert math.isfinite(content["terms"]["ce"])


def test_a_replay_gives_the_same_values(tmp_path: Path) -> None:
    """With dropout and batch normalization in training mode, after some steps."""
    failing(module_of(BrokenFor(ROW)), tmp_path)
    content = torch.load(only_capture(tmp_path), weights_only=True)
    assert content["batch_idx"] > 0
    torch.manual_seed(SEED + 1)
    other = distillation(None, ModelTeacher(network=BrokenFor(ROW)), student=shaky())
    step = replay(only_capture(tmp_path), other, DigitsDataModule())
    assert (
        same(copied(other.net), content["student"]) is False
    )  # the step moved its statistics
    assert step.terms["ce"].item() == content["terms"]["ce"]
    assert math.isnan(step.terms["kd"].item())
    assert math.isnan(step.total.item())
    assert step.teacher is not None
    broken = ~step.teacher.logits.isfinite().all(1)
    index = DigitsDataModule().source("train").rows[ROW]
    assert step.batch.index[broken].tolist() == [int(index)]


def test_a_replay_of_a_batch_whose_gradients_accumulate(tmp_path: Path) -> None:
    failing(module_of(BrokenFor(ROW)), tmp_path, accumulate=3)
    content = torch.load(only_capture(tmp_path), weights_only=True)
    window = content["batch"]["window"]
    assert window[:2] == [3, 3]
    step = replay(only_capture(tmp_path), module_of(BrokenFor(ROW)), DigitsDataModule())
    assert list(step.batch.window or ()) == window
    assert step.terms["ce"].item() == content["terms"]["ce"]


def test_the_dropout_of_the_replay_is_that_of_the_step(tmp_path: Path) -> None:
    failing(module_of(BrokenFor(ROW)), tmp_path)
    path = only_capture(tmp_path)
    content = torch.load(path, weights_only=True)
    content["rng"][-2] += 1
    torch.save(content, path)
    step = replay(path, module_of(BrokenFor(ROW)), DigitsDataModule())
    assert step.terms["ce"].item() != content["terms"]["ce"]


def test_a_student_at_fault(tmp_path: Path) -> None:
    module = ClassifierModule(mlp(), optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    message = failing(module, tmp_path)
    assert (
        "because the student's logits are not finite; lower the learning rate"
        in message
    )
    step = replay(only_capture(tmp_path), ClassifierModule(mlp()), DigitsDataModule())
    assert not math.isfinite(step.total.item())


def test_inputs_at_fault(tmp_path: Path) -> None:
    message = failing(module_of(mlp(32)), tmp_path, BrokenImages())
    assert "because the inputs of rows 20 of the train split are not finite" in message


def test_a_loss_at_fault(tmp_path: Path) -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "growing": Growing(4)}
    message = failing(module_of(mlp(32), losses), tmp_path)
    assert (
        "at step 4 (batch 4): its term 'growing' is inf; check the arguments" in message
    )


class Masked(nn.Module):
    """Rules one class out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(32)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images).clone()
        logits[:, 3] = -math.inf
        return logits


def test_a_teacher_that_rules_out_a_class(tmp_path: Path) -> None:
    data = DigitsDataModule()
    trainer().fit(
        module_of(Masked(), {"ce": CrossEntropy(), "kd": KD()}), datamodule=data
    )
    message = failing(
        module_of(Masked(), {"ce": CrossEntropy(), "mse": LogitMSE()}), tmp_path
    )
    assert (
        "'mse' is inf because the teacher's logits are not finite; check the teacher"
        in message
    )


class Windowed(DistillationModule):
    """Checks the loss once per window, as on an accelerator."""

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        self._checks_steps = False


def test_a_window_finds_the_step_and_its_batch(tmp_path: Path) -> None:
    failing(module_of(BrokenFor(ROW)), tmp_path / "exact")
    torch.manual_seed(SEED)
    module = Windowed(
        shaky(),
        ModelTeacher(network=BrokenFor(ROW)),
        {"ce": CrossEntropy(0.5), "kd": KD(4.0, weight=2.0)},
    )
    message = failing(module, tmp_path / "window")
    first = torch.load(only_capture(tmp_path / "exact"), weights_only=True)
    second = torch.load(only_capture(tmp_path / "window"), weights_only=True)
    assert first["exact"]
    assert not second["exact"]
    assert (first["step"], first["batch_idx"]) == (second["step"], second["batch_idx"])
    assert torch.equal(first["batch"]["index"], second["batch"]["index"])
    assert torch.equal(first["batch"]["inputs"], second["batch"]["inputs"])
    assert second["fault"] == "teacher"
    assert "the teacher's logits are not finite" in message


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = module_of(BrokenFor(ROW))
    message = complaint(lambda: trainer().fit(module, datamodule=DigitsDataModule()))
    assert "captured" not in message
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_replayed(tmp_path: Path) -> None:
    data = DigitsDataModule()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    module = module_of(mlp(32))
    assert "is not a capture" in complaint(
        lambda: replay(tmp_path / "weights.pt", module)
    )
    assert "there is no file" in complaint(lambda: replay(tmp_path / "none.pt", module))
    failing(module_of(BrokenFor(ROW)), tmp_path)
    path = only_capture(tmp_path)
    assert "give replay a datamodule" in complaint(lambda: replay(path, module))
    other = distillation(student=mlp())
    assert "of another network or losses" in complaint(
        lambda: replay(path, other, data)
    )
