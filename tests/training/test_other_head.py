"""Fine-tuning: a network for other classes keeps its own head and takes the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.config_errors import config_errors
from kd_lightning.training import ClassifierModule
from kd_lightning.training.initial_weights import load_initial_weights
from kd_lightning.weights import without_other_head
from tests.training.small import complaint, copied, mlp, same


def started(network: nn.Module, path: Path | str, data: DigitsDataModule) -> nn.Module:
    load_initial_weights(network, str(path), data, data.spec)
    return network


def test_a_head_for_other_classes_is_skipped(
    tmp_path: Path, data: DigitsDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = mlp(classes=100)
    path = tmp_path / "pretrained.pt"
    torch.save(
        {"module." + name: value for name, value in copied(pretrained).items()}, path
    )
    network = mlp()
    head = copied(network.head)
    started(network, path, data)
    assert same(copied(network.head), head)
    assert same(copied(network.body), copied(pretrained.body))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert (
        f"init_from {path}: prefix 'module.' removed; the head 'head' is for 100"
        in printed
    )
    assert "for 10 here, so it keeps its random initial weights" in printed
    module = ClassifierModule(mlp(), init_from=str(path))
    module.attach(data)


def test_more_than_the_head_is_refused(tmp_path: Path, data: DigitsDataModule) -> None:
    path = tmp_path / "other.pt"
    for other in (mlp(units=8, classes=100), mlp(units=8)):
        torch.save(copied(other), path)
        message = complaint(lambda: started(mlp(), path, data))
        assert (
            "'body.1.weight' is (8, 64) in the weights and (16, 64) in MLP" in message
        )


@pytest.mark.parametrize(
    ("shape", "is_head"),
    [((7, 16), True), ((10, 8), False), ((10,), False), ((7, 8), False)],
)
def test_only_the_number_of_outputs_may_differ(
    shape: tuple[int, ...], is_head: bool
) -> None:
    network = mlp()
    weights = {**copied(network), "head.weight": torch.zeros(shape)}
    changed, notes = without_other_head(network, weights, 10)
    assert (changed["head.weight"].shape == (10, 16)) is is_head
    assert bool(notes) is is_head
    # A layer whose number of outputs is not that of the classes is no head.
    assert without_other_head(network, weights, 11)[1] == []


def test_from_torchvision(
    monkeypatch: pytest.MonkeyPatch, data: DigitsDataModule
) -> None:
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    state = copied(models.shufflenet_v2_x0_5())

    def downloaded(*_: Any, **__: Any) -> dict[str, Tensor]:
        return state

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", downloaded)
    network = models.shufflenet_v2_x0_5(num_classes=10)
    started(network, str(weights), data)
    assert torch.equal(network.conv1[0].weight, state["conv1.0.weight"])
    assert network.fc.weight.shape == (10, 1024)
    message = complaint(lambda: started(network, "Nothing_Weights.DEFAULT", data))
    assert "torchvision has no weights 'Nothing_Weights.DEFAULT'" in message


def test_weights_with_other_classes_name_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> None:
        with config_errors():
            models.shufflenet_v2_x0_5(weights="DEFAULT", num_classes=10)

    message = complaint(build)
    assert "the pretrained weights are for 1000 classes, the data has 10" in message
    assert "--model.init_from=" in message
