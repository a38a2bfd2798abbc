"""Taps on any network, and logits out of whatever a network returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kd_lightning.errors import UserError
from kd_lightning.features import Taps, find_layer, run_network
from kd_lightning.outputs import as_logits

STAGES = {
    "stage1": "layer1",
    "stage2": "layer2",
    "stage3": "layer3",
    "stage4": "layer4",
    "penultimate": "avgpool",
}


class Small(nn.Module):
    """Two layers; returns what `wrap` makes of the logits."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.first, self.second, self.wrap = nn.Linear(4, 5), nn.Linear(5, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.second(self.first(x).tanh()))


class Pair(nn.Module):
    """Reads two named inputs, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Identity()

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.sum(left - 2 * right)
        return out


def hooks(network: nn.Module) -> dict[str, int]:
    """The number of hooks of every submodule that has one."""
    found = {
        name: len(m._forward_hooks) + len(m._forward_pre_hooks)
        for name, m in network.named_modules()
    }
    return {name: n for name, n in found.items() if n}


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_layers_are_captured_by_role(x: Tensor) -> None:
    network = Small()
    taps = Taps(network, {"hidden": "first", "out": "second"}, {"hidden", "out"})
    output = run_network(network, x, taps)
    assert output.features.keys() == {"hidden", "out"}
    assert torch.equal(output.features["hidden"], network.first(x))
    assert torch.equal(output.features["out"], output.logits)
    assert output.features[
        "hidden"
    ].requires_grad  # losses on features train the layers below
    assert taps.modules == {"hidden": network.first, "out": network.second}


def test_input_suffix_captures_what_goes_in(x: Tensor) -> None:
    network = Small()
    taps = Taps(
        network, {"in": "first:input", "hidden": "second:input"}, {"in", "hidden"}
    )
    output = run_network(network, x, taps)
    assert output.features["in"] is x
    assert torch.equal(output.features["hidden"], network.first(x).tanh())
    assert taps.modules == {"in": network.first, "hidden": network.second}


def test_only_wanted_roles_are_hooked() -> None:
    layers = {"hidden": "first", "out": "second", "wrong": "nowhere"}
    none, one = Small(), Small()
    assert Taps(none, layers, set()).take() == {}
    assert hooks(none) == {}
    Taps(one, layers, {"out"})
    assert hooks(one) == {"second": 1}


def test_take_hands_the_features_over(x: Tensor) -> None:
    network = Small()
    taps = Taps(network, {"hidden": "first"}, {"hidden"})
    network(x)
    first = taps.take()
    assert first.keys() == {"hidden"}
    assert taps.take() == {}
    network(2 * x)
    assert torch.equal(taps.take()["hidden"], network.first(2 * x))
    assert torch.equal(first["hidden"], network.first(x))


def test_a_negative_index_counts_from_the_end() -> None:
    network = nn.Sequential(
        nn.ReLU(), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])
    )
    assert find_layer(network, "-2") is network[0]
    assert find_layer(network, "1.-1") is find_layer(network, "1.1")
    assert find_layer(network, "-1.-2") is find_layer(network, "1.0")
    for name in ("-3", "1.-3", "1.-0", "1.0.-1", "-one"):
        with pytest.raises(UserError, match=f"has no layer '{name}'"):
            find_layer(network, name)


def test_a_wrong_layer_lists_the_nearest() -> None:
    network = resnet18()
    message = complaint(lambda: Taps(network, {"stage1": "layr1"}, {"stage1"}))
    assert "ResNet has no layer 'layr1'" in message
    assert "layer1" in message.partition("nearest names are")[2]
    # Nothing resembles it: then the first layers, so that the user sees how names look here.
    assert complaint(lambda: find_layer(network, "%%%")).endswith(
        "conv1, bn1, relu, maxpool, layer1"
    )
    assert "has no layer ''" in complaint(lambda: find_layer(network, ""))
    assert find_layer(network, "layer1.0.conv2") is network.layer1[0].conv2


def test_a_role_without_a_layer_lists_the_roles_there_are() -> None:
    message = complaint(
        lambda: Taps(Small(), {"hidden": "first", "out": "second"}, {"stage9"})
    )
    assert "'stage9'" in message
    assert "(named roles: hidden, out)" in message
    assert message.endswith("such as first, second")
    assert "(named roles: none)" in complaint(lambda: Taps(Small(), {}, {"stage9"}))


def test_a_deep_copy_captures_its_own_features(x: Tensor) -> None:
    network = Small()
    taps = Taps(network, {"hidden": "first"}, {"hidden"})
    copied_network, copied_taps = copy.deepcopy((network, taps))
    output = run_network(copied_network, x, copied_taps)
    assert taps.features == {}
    assert torch.equal(output.features["hidden"], network.first(x))
    assert copied_taps.modules == {"hidden": copied_network.first}
    copied_taps.close()
    assert hooks(copied_network) == {}
    assert hooks(network) == {"first": 1}


def test_a_torchvision_network() -> None:
    network = resnet18(num_classes=7).eval()
    taps = Taps(network, {**STAGES, "flat": "fc:input"}, {*STAGES, "flat"})
    with torch.no_grad():
        output = run_network(network, torch.randn(2, 3, 64, 64), taps)
        logits = network.fc(output.features["penultimate"].flatten(1))
    shapes = {
        role: tuple(f.shape[1:])
        for role, f in output.features.items()
        if role != "flat"
    }
    sizes = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    assert shapes == dict(zip(STAGES, sizes, strict=True))
    assert torch.equal(
        output.features["flat"], output.features["penultimate"].flatten(1)
    )
    assert torch.equal(output.logits, logits)


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits,
    "mapping": lambda logits: {"hidden": logits * 0, "logits": logits},
    "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
    "list": lambda logits: [logits, None],
    "mapping in a tuple": lambda logits: ({"logits": logits}, None),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_logits_from_whatever_a_network_returns(kind: str, x: Tensor) -> None:
    network = Small(WRAPPED[kind])
    output = run_network(network, x)
    assert torch.equal(output.logits, network.second(network.first(x).tanh()))
    assert output.features == {}


@pytest.mark.parametrize(
    "value",
    [
        "text",
        None,
        SimpleNamespace(out=1),
        {"logits": "text"},
        pytest.param({"aux": torch.zeros(1, 3)}),
        pytest.param(()),
    ],
)
def test_no_logits_is_a_mistake(value: object) -> None:
    assert f"returned {type(value).__name__}, which holds no logits" in complaint(
        lambda: as_logits(value)
    )


def test_a_mapping_of_inputs_becomes_keywords() -> None:
    network, left, right = (
        Pair(),
        torch.tensor([[5.0, 1.0]]),
        torch.tensor([[1.0, 2.0]]),
    )
    inputs: Mapping[str, Tensor] = {"right": right, "left": left}
    output = run_network(network, inputs, Taps(network, {"sum": "sum"}, {"sum"}))
    assert output.logits.tolist() == [[3.0, -3.0]]
    assert torch.equal(output.features["sum"], output.logits)


class Overwriting(nn.Module):
    """Writes over what its layers gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = (
            nn.Linear(4, 4),
            nn.Linear(4, 3),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += x
        out: Tensor = self.second(self.relu(h))
        return out


@pytest.mark.parametrize("grad", [True, False])
def test_a_feature_is_what_its_layer_gave(grad: bool, x: Tensor) -> None:
    network = Overwriting()
    taps = Taps(network, {"a": "first", "b": "relu:input"}, {"a", "b"})
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            output = run_network(network, x, taps)
            assert torch.equal(output.features["a"], network.first(x))
            assert torch.equal(output.features["b"], network.first(x) + x)
            assert torch.equal(
                output.logits, network.second((network.first(x) + x).relu())
            )
            taps.take()


def test_features_of_residual_blocks() -> None:
    network = resnet18(num_classes=4).eval()
    inputs: dict[str, Tensor] = {}
    network.layer1[0].bn2.register_forward_hook(
        lambda _, args, out: inputs.update(x=args[0])
    )
    taps = Taps(network, {"stage1": "layer1.0.bn2"}, {"stage1"})
    with torch.no_grad():
        feature = run_network(network, torch.randn(2, 3, 32, 32), taps).features[
            "stage1"
        ]
        assert torch.equal(feature, network.layer1[0].bn2(inputs["x"]))
