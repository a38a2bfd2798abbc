"""A teacher from a checkpoint, a bare weights file, torchvision's weights, or a network in Python."""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.launch import RunResult
from kd_lightning.spec import Spec
from kd_lightning.tasks import Classification
from kd_lightning.teachers import ModelTeacher
from kd_lightning.types import Batch
from tests.training.small import complaint, copied, mlp, same, samples, shaky

WEIGHTS = (
    models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
)  # the smallest of torchvision's


def prepared(data: Any, **arguments: Any) -> ModelTeacher:
    teacher = ModelTeacher(**arguments)
    teacher.prepare(data)
    assert teacher.ready
    assert isinstance(teacher.network, nn.Module)
    assert not any(m.training for m in teacher.network.modules())
    return teacher


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def imagenet() -> Any:
    """A stand-in for a datamodule: all that a teacher reads is what the data is."""
    classes = list(WEIGHTS.meta["categories"])
    return SimpleNamespace(
        task=Classification(),
        spec=Spec(
            data="imagenet",
            num_classes=1000,
            classes=tuple(classes),
            input_shape=(3, 224, 224),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )


@pytest.fixture
def torchvision_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights that differ from a new network's, in the place of the download."""
    state = models.shufflenet_v2_x0_5().state_dict()
    state = {
        name: tensor + 1 if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    monkeypatch.setattr(
        models.WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: state
    )
    return state


def test_from_a_checkpoint(
    teacher_run: RunResult, checkpoint: Path, data: DigitsDataModule
) -> None:
    teacher = prepared(data, checkpoint=str(checkpoint))
    assert isinstance(teacher.network, nn.Module)
    trained = teacher_run.module.net.eval()
    assert same(copied(teacher.network), copied(trained))
    batch = samples(data, "test")
    logits = teacher(batch).logits
    assert torch.equal(logits, trained(batch.inputs))
    # The weights are those that training left: chance is a tenth.
    assert (logits.argmax(-1) == batch.target).float().mean() > 0.5
    assert teacher.sources() == [
        {
            "path": str(checkpoint.resolve()),
            "sha256": digest(checkpoint),
            "network": "MLP",
        }
    ]
    assert prepared(data, checkpoint=str(checkpoint), sha256=digest(checkpoint)).ready


@pytest.mark.parametrize("kind", ["weights.pt", "wrapped.pt", "weights.safetensors"])
def test_from_a_bare_file_and_a_network(
    kind: str, tmp_path: Path, data: DigitsDataModule
) -> None:
    path, trained, network = tmp_path / kind, shaky().eval(), shaky()
    state = trained.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": state, "epoch": 3} if kind == "wrapped.pt" else state, path
        )
    batch = samples(data, "test", 8)
    assert not torch.equal(network.eval()(batch.inputs), trained(batch.inputs))
    network.train()
    teacher = prepared(data, checkpoint=str(path), network=network)
    assert torch.equal(teacher(batch).logits, trained(batch.inputs))
    assert teacher.sources() == [
        {"path": str(path), "sha256": digest(path), "network": "Sequential"}
    ]


def test_from_a_network_in_python(data: DigitsDataModule) -> None:
    network, batch = shaky(), samples(data, "test", 8)
    teacher = prepared(data, network=network)
    assert torch.equal(teacher(batch).logits, network.eval()(batch.inputs))


def test_from_torchvision(
    torchvision_weights: dict[str, Tensor], imagenet: Any
) -> None:
    teacher = prepared(imagenet, weights=str(WEIGHTS))
    assert isinstance(teacher.network, models.ShuffleNetV2)
    assert same(copied(teacher.network), torchvision_weights)
    assert teacher.sources() == [
        {"weights": str(WEIGHTS), "url": WEIGHTS.url, "network": "ShuffleNetV2"}
    ]
    imagenet.spec = replace(imagenet.spec, classes=imagenet.spec.classes[::-1])
    assert "the classes or their order differ" in complaint(
        lambda: ModelTeacher(weights=str(WEIGHTS)).prepare(imagenet)
    )


def test_torchvision_does_not_know_the_data(
    torchvision_weights: dict[str, Tensor], data: DigitsDataModule
) -> None:
    message = complaint(lambda: ModelTeacher(weights=str(WEIGHTS)).prepare(data))
    assert message == "the teacher knows 1000 classes, the data digits has 10"


def test_torchvision_without_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], imagenet: Any
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        sys.stderr.write("Downloading: ...\n")  # as torch.hub does
        raise URLError("no route")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", unreachable)
    message = complaint(lambda: ModelTeacher(weights=str(WEIGHTS)).prepare(imagenet))
    assert "cannot be downloaded" in message
    assert f"put {WEIGHTS.url} into {torch.hub.get_dir()}/checkpoints" in message
    # Standard error is left to the one line of the error.
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "Downloading" in captured.out


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18",
        "Nothing_Weights.IMAGENET1K_V1",
        "ResNet18_Weights.IMAGENET9K",
    ],
)
def test_torchvision_has_no_such_weights(name: str, imagenet: Any) -> None:
    message = complaint(lambda: ModelTeacher(weights=name).prepare(imagenet))
    assert f"torchvision has no weights {name!r}" in message


@pytest.mark.usefixtures("torchvision_weights")
@pytest.mark.parametrize("source", ["checkpoint", "torchvision"])
def test_prepare_draws_no_random_number(
    source: str, checkpoint: Path, data: DigitsDataModule, imagenet: Any
) -> None:
    def states() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            repr(np.random.get_state()),
        ]

    before = states()
    if source == "checkpoint":
        prepared(data, checkpoint=str(checkpoint))
    else:
        prepared(imagenet, weights=str(WEIGHTS))
    assert states() == before
    mlp()  # making a network does draw: the state was put back
    assert states() != before


def test_features_by_role(checkpoint: Path, data: DigitsDataModule) -> None:
    teacher = prepared(
        data, checkpoint=str(checkpoint), layers={"hidden": "body", "unused": "nowhere"}
    )
    assert teacher.tap(set()) == {}
    assert teacher.tap({"hidden"}).keys() == {"hidden"}
    output = teacher(samples(data, "test", 4))
    assert output.features.keys() == {"hidden"}
    assert isinstance(teacher.network, nn.Module)
    assert torch.equal(
        teacher.network.get_submodule("head")(output.features["hidden"]), output.logits
    )


def test_reads_its_own_inputs_where_there_are_some(data: DigitsDataModule) -> None:
    teacher, batch = prepared(data, network=mlp(4)), samples(data, "test", 4)
    other = Batch(
        torch.zeros(4, 1, 8, 8), batch.target, batch.index, teacher_inputs=batch.inputs
    )
    assert torch.equal(teacher(other).logits, teacher(batch).logits)
