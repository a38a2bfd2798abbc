"""What a user does in Python: plain loaders, own data, copies, checkpoints, the trained student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.data import DigitsDataModule, TensorDataModule
from kd_lightning.losses import CRD, KD, CrossEntropy, FitNets
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule, DistillationModule
from tests.training.small import complaint, copied, distillation, mlp, same, trainer

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 1, 8, 8, generator=GENERATOR)
Y = X.flatten(1)[:, :10].argmax(1)


def loader(y: Tensor = Y, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, y), batch_size=16, **options)


class Plain(pl.LightningDataModule):
    """As any Lightning user writes it."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


# -- plain batches -----------------------------------------------------------------------------


def test_plain_loaders() -> None:
    module = distillation()
    run = trainer(max_epochs=2)
    run.fit(module, loader(), loader())
    assert {"val_accuracy", "val_teacher_agreement", "train_loss_kd"} <= set(
        run.callback_metrics
    )
    run.test(module, loader())
    assert "test_accuracy" in run.callback_metrics
    logits = run.predict(module, loader())
    assert logits is not None
    assert len(logits) == 4


def test_plain_loaders_train_what_tensors_train() -> None:
    class Tensors(TensorDataModule):
        def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
            return None if stage == "validation" else (X, Y)

        def loader(self, stage: str) -> Any:
            served = super().loader(stage)
            served.shuffle = False
            return served

    weights = []
    for data in (
        {"train_dataloaders": loader()},
        {"datamodule": Tensors(batch_size=16)},
    ):
        torch.manual_seed(0)
        module = ClassifierModule(mlp(dropout=0.5))
        trainer().fit(module, **data)
        weights.append(copied(module.net))
    assert same(*weights)


def test_a_plain_datamodule() -> None:
    module = distillation()
    run = trainer()
    run.fit(module, datamodule=Plain())
    run.test(module, datamodule=Plain())
    assert "test_accuracy" in run.callback_metrics


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DataLoader(TensorDataset(X)), "a batch must be (inputs, labels)"),
        (
            loader(Y.float()),
            "labels must be one integer class per sample, got torch.float32",
        ),
        (loader(Y + 1), "a sample of class 10, but the network MLP returns 10 logits"),
        ([], "the DataLoader is empty"),
    ],
)
def test_other_batches_are_refused(data: Any, expected: str) -> None:
    module = ClassifierModule(mlp())
    assert expected in complaint(lambda: trainer().fit(module, data))


def test_what_needs_an_index_is_refused() -> None:
    losses: dict[str, Any] = {
        "ce": CrossEntropy(),
        "crd": CRD(layer="first", num_negatives=4),
    }
    layers = {"first": "body.0"}
    teacher = ModelTeacher(network=mlp(32), layers=layers)
    module = distillation(losses, teacher=teacher, layers=layers)
    assert "source_samples" in complaint(lambda: trainer().fit(module, loader()))


# -- one's own data ----------------------------------------------------------------------------


class Points(TensorDataModule):
    """The example of the documentation."""

    def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
        generator = torch.Generator().manual_seed(len(stage))
        x = torch.randn(200, 2, generator=generator)
        return x, (x[:, 0] * x[:, 1] > 0).long()


def test_own_tensors() -> None:
    data = Points(batch_size=20)
    teacher = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    student = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    run = trainer(max_epochs=5)
    run.fit(ClassifierModule(teacher), datamodule=data)
    losses: dict[str, Any] = {"ce": CrossEntropy(weight=0.1), "kd": KD(temperature=2)}
    module = DistillationModule(student, ModelTeacher(network=teacher), losses)
    run = trainer(max_epochs=5)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data)
    assert run.callback_metrics["test_accuracy"] > 0.7
    assert data.spec.samples == {"train": 200, "validation": 200, "test": 200}
    assert data.spec.source_samples == 400
    (batch, *_) = data.loader("validation")
    assert batch.index.tolist() == list(range(200, 400))


def returning(value: Any) -> TensorDataModule:
    class Own(TensorDataModule):
        def load(self, stage: str) -> Any:
            return value

    return Own()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X, "must return two tensors"),
        ((X, Y[:3]), "64 inputs, but 3 targets"),
        ((X.byte(), Y), "inputs are torch.uint8"),
        ((X / 0, Y), "infinite or not numbers"),
        ((X, Y.float()), "one integer class per sample, got torch.float32"),
        ((X, Y - 1), "the class -1 is negative"),
        (None, "load('train') returned None"),
    ],
)
def test_wrong_tensors(value: Any, expected: str) -> None:
    assert expected in complaint(lambda: returning(value).spec)


# -- copies and checkpoints --------------------------------------------------------------------


def hinted() -> DistillationModule:
    """With a loss that reads features of both networks, through an adapter of its own."""
    layers = {"first": "body.0"}
    losses: dict[str, Any] = {"ce": CrossEntropy(), "hint": FitNets("first", "first")}
    teacher = ModelTeacher(network=mlp(32), layers=layers)
    return distillation(losses, teacher=teacher, layers=layers)


@pytest.mark.parametrize("make", [distillation, hinted])
def test_a_deep_copy_trains_by_itself(make: Any) -> None:
    module = make()
    module.attach(DigitsDataModule())
    twin = copy.deepcopy(module)
    before = copied(module.net)
    trainer(limit_train_batches=2).fit(twin, datamodule=DigitsDataModule())
    assert same(before, copied(module.net))
    assert not same(before, copied(twin.net))
    trainer(limit_train_batches=2).fit(module, datamodule=DigitsDataModule())
    assert same(copied(twin.net), copied(module.net))


@pytest.mark.skipif(
    not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="new in Lightning 2.6"
)
def test_averages_hold_adapters_and_teacher() -> None:
    """The callback copies the module before Lightning would set it up."""
    ema = pl.callbacks.EMAWeightAveraging(decay=0.5)
    module = hinted()
    run = trainer(callbacks=[ema], limit_train_batches=2)
    run.fit(module, datamodule=DigitsDataModule())
    assert ema._average_model is not None
    average = ema._average_model.module
    assert [name for name, _ in average.named_parameters()] == [
        name for name, _ in module.named_parameters()
    ]
    assert average.state_dict().keys() == module.state_dict().keys()
    message = complaint(lambda: trainer(callbacks=[ema]).fit(hinted(), loader()))
    assert message.startswith("callbacks that average weights need a datamodule")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, DistillationModule]:
    module = distillation()
    run = trainer(limit_train_batches=2)
    run.fit(module, datamodule=DigitsDataModule())
    run.save_checkpoint(tmp_path / "python.ckpt")
    return tmp_path / "python.ckpt", module


def test_a_module_of_python_loads_with_its_network(
    saved: tuple[Path, DistillationModule],
) -> None:
    path, module = saved
    loaded = DistillationModule.load_from_checkpoint(path, student=mlp())
    assert same(copied(loaded.student), copied(module.student))
    run = trainer()
    run.test(loaded, datamodule=DigitsDataModule())
    assert "test_accuracy" in run.callback_metrics


def test_without_the_network_the_message_asks_for_it(
    saved: tuple[Path, DistillationModule],
) -> None:
    message = complaint(lambda: DistillationModule.load_from_checkpoint(saved[0]))
    assert message.endswith(
        "DistillationModule.load_from_checkpoint(PATH, student=NETWORK)"
    )


def test_the_student_in_three_lines_of_torch(
    saved: tuple[Path, DistillationModule],
) -> None:
    path, module = saved
    network = mlp()
    state = torch.load(path, weights_only=True)["state_dict"]
    student = {
        k.removeprefix("student."): v
        for k, v in state.items()
        if k.startswith("student.")
    }
    network.load_state_dict(student)
    assert same(copied(network), copied(module.student))
