"""The networks of the CIFAR-100 benchmark: published sizes, shapes of layers, gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50, shufflenet_v2_x1_0

from kd_lightning import models
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.models import (
    CIFARVGG,
    CIFARMobileNetV2,
    CIFARResNet,
    CIFARResNet50,
    WideResNet,
)
from kd_lightning.models.shufflenet_v1 import CIFARShuffleNetV1
from kd_lightning.models.shufflenet_v2 import CIFARShuffleNetV2
from kd_lightning.types import Output

Build = Callable[..., nn.Module]

NETWORKS: dict[str, tuple[Build, int]] = {
    "resnet8": (partial(CIFARResNet, 8), 83_892),
    "resnet14": (partial(CIFARResNet, 14), 181_108),
    "resnet20": (partial(CIFARResNet, 20), 278_324),
    "resnet32": (partial(CIFARResNet, 32), 472_756),
    "resnet44": (partial(CIFARResNet, 44), 667_188),
    "resnet56": (partial(CIFARResNet, 56), 861_620),
    "resnet110": (partial(CIFARResNet, 110), 1_736_564),
    "resnet8x4": (partial(CIFARResNet, 8, 4), 1_233_540),
    "resnet32x4": (partial(CIFARResNet, 32, 4), 7_433_860),
    "resnet50": (CIFARResNet50, 23_705_252),
    "wrn16-1": (partial(WideResNet, 16, 1), 180_916),
    "wrn16-2": (partial(WideResNet, 16, 2), 703_284),
    "wrn40-1": (partial(WideResNet, 40, 1), 569_780),
    "wrn40-2": (partial(WideResNet, 40, 2), 2_255_156),
    "vgg8": (partial(CIFARVGG, 8), 3_965_028),
    "vgg11": (partial(CIFARVGG, 11), 9_277_284),
    "vgg13": (partial(CIFARVGG, 13), 9_462_180),
    "vgg16": (partial(CIFARVGG, 16), 14_774_436),
    "vgg19": (partial(CIFARVGG, 19), 20_086_692),
    "mobilenetv2": (CIFARMobileNetV2, 812_836),
    "shufflenetv1": (CIFARShuffleNetV1, 949_258),
    "shufflenetv2": (CIFARShuffleNetV2, 1_355_528),
}
"""Number of parameters for 100 classes, as in the benchmark's code (Tian et al. 2020)."""

SMALL = (
    "resnet8",
    "resnet50",
    "wrn16-1",
    "vgg8",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
)
"""One network of each class, for tests that compute with real weights."""

FIXED = (CIFARResNet50, CIFARShuffleNetV1, CIFARShuffleNetV2)


def build(
    name: str, device: str = "cpu", channels: int = 3, classes: int = 100
) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return NETWORKS[name][0](input_shape=[channels, 32, 32], num_classes=classes)


def run(network: nn.Module, x: Tensor) -> Output:
    """Logits and the features of all layers that the docstring names."""
    names = [
        name
        for name, _ in network.named_children()
        if name.startswith(("stem", "stage", "last", "pool"))
    ]
    return run_network(
        network, x, Taps(network, {name: name for name in names}, set(names))
    )


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(
        2, channels, size, size, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_number_of_parameters(name: str) -> None:
    network = build(name, "meta")
    assert sum(p.numel() for p in network.parameters()) == NETWORKS[name][1]
    assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 100)


def test_every_network_has_a_published_size() -> None:
    counted = {getattr(make, "func", make).__name__ for make, _ in NETWORKS.values()}
    assert {
        name for name in models.__all__ if name.startswith(("CIFAR", "Wide"))
    } == counted


# As documented in the docstrings, for a 32x32 image.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "resnet20": [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet32x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)],
    "wrn40-2": [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
    "vgg8": [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 4, 4),
        (512,),
    ],
    "vgg13": [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 4, 4),
        (512,),
    ],
    "mobilenetv2": [
        (16, 16, 16),
        (12, 16, 16),
        (16, 8, 8),
        (48, 4, 4),
        (160, 2, 2),
        (1280, 2, 2),
        (1280,),
    ],
    "shufflenetv1": [(24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4), (960,)],
    "shufflenetv2": [
        (24, 32, 32),
        (116, 16, 16),
        (232, 8, 8),
        (464, 4, 4),
        (1024, 4, 4),
        (1024,),
    ],
    "resnet50": [
        (64, 32, 32),
        (256, 32, 32),
        (512, 16, 16),
        (1024, 8, 8),
        (2048, 4, 4),
        (2048,),
    ],
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_have_the_documented_shapes(name: str) -> None:
    features = run(
        build(name, "meta"), torch.zeros(2, 3, 32, 32, device="meta")
    ).features
    assert [tuple(feature.shape[1:]) for feature in features.values()] == SHAPES[name]


LINEAR = {
    "wrn16-1": {"stem", "stage1", "stage2", "stage3"},
    "mobilenetv2": {"stage1", "stage2", "stage3", "stage4"},
}
"""Layers that are not the output of a ReLU, as in the benchmark."""


@pytest.mark.parametrize("name", SMALL)
def test_all_parameters_train_and_layers_follow_their_relu(name: str) -> None:
    network = build(name)
    output = run(network, images())
    below_zero = {
        role for role, feature in output.features.items() if (feature < 0).any()
    }
    assert below_zero == LINEAR.get(name, set())
    assert output.logits.shape == (2, 100)
    # `pool` is the input of the head: losses on penultimate features read the classifier's input.
    torch.testing.assert_close(
        network.get_submodule("head")(output.features["pool"]), output.logits
    )
    nn.functional.cross_entropy(output.logits, torch.arange(2)).backward()
    for parameter_name, p in network.named_parameters():
        assert p.grad is not None, parameter_name
        assert p.grad.isfinite().all(), parameter_name
        assert p.grad.any(), parameter_name


@pytest.mark.parametrize("name", [name for name in SMALL if name != "resnet50"])
def test_other_image_sizes_and_channels(name: str) -> None:
    network = build(name, channels=1, classes=7)
    assert network(images(8, 1)).shape == (2, 7)


def assert_equivalent(network: nn.Module, reference: nn.Module) -> None:
    """Both compute the same function if the network loads the weights of the reference."""
    weights = list(reference.state_dict().values())
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images()), reference.eval()(images()))


def test_shufflenet_v2_is_torchvisions_behind_the_stem() -> None:
    reference = shufflenet_v2_x1_0(num_classes=100)
    reference.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
    reference.maxpool = nn.Identity()
    assert_equivalent(build("shufflenetv2"), reference)


def test_resnet50_is_torchvisions_behind_the_stem() -> None:
    reference: ResNet = resnet50(num_classes=100)
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = nn.Identity()
    assert_equivalent(build("resnet50"), reference)


def test_he_normal_weights() -> None:
    """sqrt(2 / (channels out * kernel area)); depthwise convolutions count all output channels."""
    for name in ("wrn16-1", "vgg8", "mobilenetv2"):
        for module in build(name).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
                area = module.kernel_size[0] * module.kernel_size[1]
                expected = (2 / (module.out_channels * area)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
                assert module.bias is None or not module.bias.any()


def test_pre_activation_features_are_available_after_their_relu() -> None:
    network = build("wrn16-1").eval()
    roles = {
        "sum": "stage2",
        "active": "stage3.0.relu1",
        "last": "stage3",
        "final": "final.1",
    }
    with torch.no_grad():
        features = run_network(
            network, images(), Taps(network, roles, set(roles))
        ).features
        for before, after, norm in (
            ("sum", "active", "stage3.0.bn1"),
            ("last", "final", "final.0"),
        ):
            torch.testing.assert_close(
                features[after], network.get_submodule(norm)(features[before]).relu()
            )


def test_mobilenet_widths() -> None:
    with torch.device("meta"):
        wide = CIFARMobileNetV2(2.0, input_shape=[3, 32, 32], num_classes=10)
        thin = CIFARMobileNetV2(1 / 16, input_shape=[3, 32, 32], num_classes=10)
        assert (wide.head.in_features, thin.head.in_features) == (2560, 1280)
        assert run(thin, torch.zeros(2, 3, 32, 32)).features["stage4"].shape == (
            2,
            20,
            2,
            2,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(WideResNet, 17),
            r"depth must be 6 n \+ 4 \(10, 16, 22, 28, 40, \.\.\.\), got 17",
        ),
        (partial(WideResNet, 4), r"depth must be 6 n \+ 4"),
        (partial(WideResNet, 16, 0), "width must be at least 1, got 0"),
        (
            partial(CIFARVGG, 9),
            "CIFARVGG: depth must be one of 8, 11, 13, 16, 19, got 9",
        ),
        (
            partial(CIFARMobileNetV2, 0.01),
            "CIFARMobileNetV2: width must be at least 1/16",
        ),
        (
            partial(CIFARMobileNetV2, float("nan")),
            "CIFARMobileNetV2: width must be at least 1/16",
        ),
        (
            partial(CIFARMobileNetV2, float("inf")),
            "CIFARMobileNetV2: width must be at least 1/16",
        ),
    ],
)
def test_impossible_sizes(make: Build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(input_shape=[3, 32, 32], num_classes=10)


@pytest.mark.parametrize(
    "make",
    [
        partial(CIFARResNet, 8),
        partial(WideResNet, 16),
        partial(CIFARVGG, 8),
        CIFARMobileNetV2,
        *FIXED,
    ],
)
def test_shapes_are_required(make: Build) -> None:
    known: dict[str, Any] = {"input_shape": [3, 32, 32], "num_classes": 10}
    for missing in known:
        with pytest.raises(
            UserError,
            match="input_shape or num_classes is missing; kd takes both from the data",
        ):
            make(**{**known, missing: None})
    with pytest.raises(
        UserError,
        match=r"needs images, \[channels, height, width\]; the data has inputs of shape \[784\]",
    ):
        make(**{**known, "input_shape": [784]})
