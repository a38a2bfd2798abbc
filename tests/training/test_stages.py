"""Stages: a run that starts from another run, and what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import CrossEntropy
from kd_lightning.losses.base import DistillLoss
from kd_lightning.training import DistillationModule
from tests.training.small import copied, distillation, mlp, same, trainer
from tests.training.test_student_checkpoint import Adapted


def module(name: str = "adapted", **arguments: Any) -> DistillationModule:
    """A student with a loss that has a trained adapter."""
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), name: Adapted()}
    return distillation(losses, **arguments)


def fitted(run: DistillationModule) -> DistillationModule:
    trainer().fit(run, datamodule=DigitsDataModule())
    return run


@pytest.fixture
def first_stage(tmp_path: Path) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint, and the weights of its network and of its losses."""
    run = module()
    fit = trainer()
    fit.fit(run, datamodule=DigitsDataModule())
    path = tmp_path / "first.ckpt"
    fit.save_checkpoint(path)
    return str(path), copied(run.net), copied(run.losses)


def test_init_from_restores_network_and_adapters(
    first_stage: tuple[str, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    path, network, losses = first_stage
    second = module(init_from=path)
    second.attach(DigitsDataModule())
    assert same(copied(second.net), network)
    assert same(copied(second.losses), losses)


def test_losses_of_another_name_begin_anew(
    first_stage: tuple[str, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    path, network, losses = first_stage
    second = module("another", init_from=path)
    second.attach(DigitsDataModule())
    assert same(copied(second.net), network)
    started = copied(second.losses)
    assert started.keys() != losses.keys()


@pytest.mark.parametrize("train", ["both", "network", "losses"])
def test_what_trains_is_a_setting(train: Literal["both", "network", "losses"]) -> None:
    torch.manual_seed(0)
    run = module(student=mlp(), train=train)
    run.attach(DigitsDataModule())
    network, losses = copied(run.net), copied(run.losses)
    fitted(run)
    assert same(network, copied(run.net)) is (train == "losses")
    assert same(losses, copied(run.losses)) is (train == "network")
