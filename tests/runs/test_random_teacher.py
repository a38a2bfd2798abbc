"""A teacher whose network nobody trained is refused from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.models import MLP
from kd_lightning.networks import build_network
from kd_lightning.runs.random_teacher import check_teachers_are_trained
from kd_lightning.teachers import ModelTeacher
from tests.runs import PAIR, Kd
from tests.training.small import complaint, mlp

TEACHER = "kd_lightning.teachers.ModelTeacher"
RANDOM = {
    "class_path": "kd_lightning.models.MLP",
    "init_args": {"hidden": [4], "input_shape": [1, 8, 8], "num_classes": 10},
}


class Trained(nn.Module):
    """Loads all its weights itself, as `timm.create_model(..., pretrained=True)` does.

    With other classes than those it was trained for, the head is new.
    """

    def __init__(self, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__()
        self.body = nn.Linear(64, kwargs.get("width", 4))
        self.head = nn.Linear(kwargs.get("width", 4), num_classes)
        nn.init.ones_(self.body.weight)
        nn.init.zeros_(self.body.bias)
        if num_classes == 10:
            nn.init.ones_(self.head.weight)
            nn.init.zeros_(self.head.bias)


def create_model(**kwargs: Any) -> nn.Module:
    return Trained(**kwargs)


def described(name: str, **dict_kwargs: Any) -> dict[str, Any]:
    return {
        "class_path": f"{__name__}.{name}",
        "init_args": {},
        "dict_kwargs": dict_kwargs,
    }


def config(**arguments: Any) -> dict[str, Any]:
    teacher = {"class_path": TEACHER, "init_args": arguments}
    return {"class_path": "x", "init_args": {"teacher": teacher, "losses": {}}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a new network": (config(network=RANDOM), "'body.1.weight'"),
    "a new head": (
        config(network=described("create_model", num_classes=7)),
        "'head.weight'",
    ),
    "in an ensemble": (
        {"init_args": {"teachers": [config(network=RANDOM)["init_args"]["teacher"]]}},
        "'body.1.weight'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_random_weights_are_refused(kind: str) -> None:
    model, name = REFUSED[kind]
    state = torch.get_rng_state()
    message = complaint(lambda: check_teachers_are_trained(model))
    assert "the teacher's network has random weights" in message
    assert name in message
    assert message.endswith("give --model.teacher.checkpoint")
    assert torch.equal(torch.get_rng_state(), state)


def test_trained_teachers_are_not() -> None:
    for arguments in (
        {"network": described("create_model")},
        {"network": RANDOM, "checkpoint": "a.pt"},
        {"network": None, "checkpoint": "a.ckpt"},
        {"network": None, "weights": "ResNet18_Weights.DEFAULT"},
    ):
        check_teachers_are_trained(config(**arguments))


def test_kd_refuses(place: Path, kd: Kd) -> None:
    random_network = ["--model.teacher.network=kd_lightning.models.MLP"]
    outcome = kd(*PAIR, *random_network, "--model.teacher.network.hidden=[8]")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "the teacher's network has random weights" in outcome.err
    assert outcome.out == ""
    assert not list(place.glob("runs/*"))


def test_python_may_give_a_network_alone() -> None:
    ModelTeacher(network=mlp()).prepare(DigitsDataModule())


def test_keywords_of_a_factory_are_kept() -> None:
    network = build_network(described("create_model", num_classes=3, width=5))
    assert isinstance(network, Trained)
    assert network.head.weight.shape == (3, 5)
    assert isinstance(build_network(RANDOM), MLP)
