"""A folded teacher computes what it computed before, and what cannot be folded is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from kd_lightning import models
from kd_lightning.features import Taps, run_network
from kd_lightning.models.shufflenet_v1 import CIFARShuffleNetV1
from kd_lightning.models.shufflenet_v2 import CIFARShuffleNetV2
from kd_lightning.runs.fold import NORMS, fold
from tests.runs import TEACHER, Kd, student

FOLD = "--trainer.callbacks+=kd_lightning.runs.fold.FoldTeachers"
IMAGES: Any = {"input_shape": [3, 32, 32], "num_classes": 5}


def lived(network: nn.Module) -> nn.Module:
    """In double precision and eval mode, with statistics and affine maps as of a trained network."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, NORMS):
            for tensor in filter(None.__ne__, (module.running_mean, module.bias)):
                nn.init.normal_(cast(Tensor, tensor), std=0.3)
            for tensor in filter(None.__ne__, (module.running_var, module.weight)):
                nn.init.uniform_(cast(Tensor, tensor), 0.5, 1.5)
    return network.double().eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: models.CIFARResNet(8, **IMAGES), 0),
        (lambda: models.CIFARVGG(8, **IMAGES), 0),
        (lambda: models.CIFARMobileNetV2(**IMAGES), 0),
        (lambda: CIFARShuffleNetV1(**IMAGES), 0),
        (lambda: CIFARShuffleNetV2(**IMAGES), 0),
        (
            lambda: models.WideResNet(10, 1, **IMAGES),
            4,
        ),  # normalizes before it convolves: one of two in a block, and the last
    ],
)
@torch.no_grad()
def test_computes_the_same(make: Callable[[], nn.Module], left: int) -> None:
    network, inputs = lived(make()), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before, there = network(inputs), norms(network)
    assert fold(network) == there - left
    assert norms(network) == left
    torch.testing.assert_close(network(inputs), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_every_dimension(kind: int, bias: bool) -> None:
    conv, norm = (
        (nn.Conv1d, nn.BatchNorm1d) if kind == 1 else (nn.Conv3d, nn.BatchNorm3d)
    )
    network = lived(
        nn.Sequential(
            conv(2, 4, 3, padding=1, groups=2, bias=bias), norm(4, affine=bias)
        )
    )
    inputs = torch.randn(2, 2, *[5] * kind, dtype=torch.float64)
    before = network(inputs)
    assert fold(network) == 1
    torch.testing.assert_close(network(inputs), before)


@torch.no_grad()
def test_features_stay() -> None:
    network = lived(models.CIFARResNet(8, **IMAGES))
    layers = {"normalized": "stage1.0.bn1", "block": "stage2"}
    taps, inputs = (
        Taps(network, layers, set(layers)),
        torch.randn(2, 3, 32, 32, dtype=torch.float64),
    )
    before = run_network(network, inputs, taps)
    fold(network)
    assert norms(network) == 1
    after = run_network(network, inputs, taps)
    for role in layers:
        torch.testing.assert_close(after.features[role], before.features[role])


class Odd(nn.Module):
    """A convolution whose output is read twice, one that runs twice, one whose weight is read, and statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(3, track_running_stats=at < 3) for at in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        once = self.convs[0](x)
        x = once + self.norms[0](once)
        x = self.convs[1](self.norms[1](self.convs[1](x)))
        x = self.norms[2](self.convs[2](x)) + cast(Tensor, self.convs[2].weight).sum()
        return cast(Tensor, self.norms[3](self.convs[3](x)))


@torch.no_grad()
def test_leaves_what_it_would_change() -> None:
    network, inputs = lived(Odd()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = network(inputs)
    assert fold(network) == 0
    assert torch.equal(network(inputs), before)


CONVOLVED = [
    "--model.network=kd_lightning.models.CIFARResNet",
    "--model.network.depth=8",
    "--run.name=convolved",
]


def test_trains_a_student(kd: Kd) -> None:
    assert kd(*TEACHER, *CONVOLVED).code == 0
    argv = student(Path("runs/convolved/checkpoints/last.ckpt"))
    assert kd(*argv, "--run.name=plain").code == 0
    outcome = kd(*argv, FOLD, "--run.name=folded")
    assert (outcome.code, outcome.err) == (0, "")
    plain, folded = (
        torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)[
            "state_dict"
        ]
        for name in ("plain", "folded")
    )
    assert list(plain) == list(folded)
    assert not all(torch.equal(plain[key], folded[key]) for key in plain)
    for key in plain:
        torch.testing.assert_close(folded[key], plain[key], rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(144, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x if x.mean() > 0 else -x))


def test_untraceable_networks_are_left_alone(kd: Kd) -> None:
    network = ["--model.network=tests.runs.test_fold.Branching", "--run.name=branching"]
    assert kd(*TEACHER, *network).code == 0
    outcome = kd(*student(Path("runs/branching/checkpoints/last.ckpt")), FOLD)
    assert outcome.code == 0
    assert "FoldTeachers leaves Branching as it is" in outcome.err
    assert "Traceback" not in outcome.err


def test_says_where_there_is_nothing_to_fold(teacher: Path, kd: Kd) -> None:
    outcome = kd(*student(teacher), FOLD)
    assert outcome.code == 0
    assert (
        "FoldTeachers finds no batch normalization after a convolution in MLP"
        in outcome.err
    )
