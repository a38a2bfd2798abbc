"""Networks that the Trainer builds in `configure_model`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.models import MLP
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule, DeferredNetwork, DistillationModule
from kd_lightning.weights import network_weights, read_file
from tests.training.small import copied, distillation, mlp, same, trainer


def seeded_mlp() -> MLP:
    """The same weights at each call, whatever the global generator holds."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return mlp()


def trained(student: nn.Module) -> DistillationModule:
    """A student after one epoch against a teacher of fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher = ModelTeacher(network=mlp(32))
    module = distillation(student=student, teacher=teacher)
    trainer().fit(module, datamodule=DigitsDataModule(batch_size=256))
    return module


def test_training_equals_that_of_a_network_built_before() -> None:
    deferred = trained(DeferredNetwork(seeded_mlp))
    assert isinstance(deferred.student, MLP)
    assert same(copied(deferred.student), copied(trained(seeded_mlp()).student))


def test_a_constraint_acts_on_a_network_built_late() -> None:
    def constrained() -> MLP:
        return mlp(max_norm=0.01)

    student = trained(DeferredNetwork(constrained)).student
    first_layer = next(m for m in student.modules() if isinstance(m, nn.Linear))
    assert first_layer.weight.norm(dim=1).max() <= 0.0101


def test_the_trainer_chooses_the_type_of_the_weights() -> None:
    module = ClassifierModule(DeferredNetwork(mlp))
    trainer(precision="64-true").fit(
        module, datamodule=DigitsDataModule(batch_size=256)
    )
    assert next(module.net.parameters()).dtype == torch.float64


def test_the_network_is_built_once_and_only_by_the_hook() -> None:
    built: list[MLP] = []

    def factory() -> MLP:
        built.append(mlp())
        return built[-1]

    module = ClassifierModule(DeferredNetwork(factory))
    assert built == []
    with pytest.raises(RuntimeError, match="not built yet"):
        module(torch.zeros(1, 1, 8, 8))
    module.configure_model()
    module.configure_model()
    assert len(built) == 1


def test_a_checkpoint_loads_into_a_deferred_network(tmp_path: Path) -> None:
    module = ClassifierModule(DeferredNetwork(mlp))
    fit = trainer()
    fit.fit(module, datamodule=DigitsDataModule(batch_size=256))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ClassifierModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=DeferredNetwork(mlp)
    )
    weights = network_weights(read_file(tmp_path / "last.ckpt", "the file"))
    assert same(copied(loaded.net), dict(weights))
