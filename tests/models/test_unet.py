"""The U-Net: shapes at every size, skip connections, layers by role, and bad arguments."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.models import UNet
from kd_lightning.paths import shipped_root


@pytest.mark.parametrize("size", [(8, 8), (12, 16), (9, 13), (45, 60)])
def test_logits_have_the_height_and_width_of_the_input(size: tuple[int, int]) -> None:
    network = UNet(width=2, levels=4, input_shape=[3, *size], num_classes=5)
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def convolution_weights(channels_in: int, channels: int) -> int:
    """Weights and batch-norm parameters of two 3x3 convolutions."""
    return 9 * channels_in * channels + 9 * channels * channels + 4 * channels


def test_the_number_of_parameters() -> None:
    network = UNet(width=4, levels=3, input_shape=[3, 8, 8], num_classes=5)
    encoder = convolution_weights(3, 4) + convolution_weights(4, 8)
    bottom = convolution_weights(8, 16)
    decoder = convolution_weights(16 + 8, 8) + convolution_weights(8 + 4, 4)
    head = 4 * 5 + 5
    assert (
        sum(p.numel() for p in network.parameters())
        == encoder + bottom + decoder + head
    )


def test_every_level_reaches_the_logits() -> None:
    network = UNet(width=4, levels=3, input_shape=[3, 8, 8], num_classes=5)
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_a_pixel_sees_its_neighbours_alone_without_the_lower_levels() -> None:
    torch.manual_seed(0)
    network = UNet(width=4, levels=2, input_shape=[1, 32, 32], num_classes=3).eval()
    plain = torch.zeros(1, 1, 32, 32)
    changed = plain.clone()
    changed[..., 16, 16] = 1.0
    with torch.no_grad():
        difference = (network(changed) - network(plain)).abs().amax((0, 1))
    rows, columns = torch.nonzero(difference, as_tuple=True)
    # Two convolutions, pooling, two at half size, and two more: 14 pixels in all directions suffice.
    assert int((rows - 16).abs().max()) <= 14
    assert int((columns - 16).abs().max()) <= 14
    assert bool(difference[16, 16] > 0)


def test_the_layers_of_the_pair_have_the_documented_shapes() -> None:
    text = (shipped_root() / "configs" / "pairs" / "unet32_unet8.yaml").read_text(
        encoding="utf-8"
    )
    arguments = yaml.safe_load(text)["model"]["init_args"]
    layers = arguments["layers"]
    assert arguments["teacher"]["init_args"]["layers"] == layers
    network = UNet(width=8, input_shape=[3, 20, 24], num_classes=5)
    taps = Taps(network, layers, set(layers))
    output = run_network(network, torch.randn(2, 3, 20, 24), taps)
    shapes = {role: tuple(feature.shape) for role, feature in output.features.items()}
    assert shapes == {
        "stage1": (2, 8, 20, 24),
        "stage2": (2, 16, 10, 12),
        "stage3": (2, 32, 5, 6),
        "bottom": (2, 64, 2, 3),
        "penultimate": (2, 8, 20, 24),
        "head": (2, 5, 20, 24),
    }


def test_convolutions_start_as_he_et_al() -> None:
    torch.manual_seed(0)
    network = UNet(width=32, levels=2, input_shape=[3, 8, 8], num_classes=5)
    convolution = network.bottom[3]
    assert isinstance(convolution, nn.Conv2d)
    assert float(convolution.weight.std()) == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.02
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({}, "input_shape or num_classes is missing"),
        ({"input_shape": [784], "num_classes": 3}, "needs images"),
        (
            {"input_shape": [3, 8, 8], "num_classes": 3, "width": 0},
            "width must be at least 1",
        ),
        (
            {"input_shape": [3, 8, 8], "num_classes": 3, "levels": 1},
            "levels at least 2",
        ),
        ({"input_shape": [3, 7, 64], "num_classes": 3}, "a side of 7 pixels"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], part: str) -> None:
    with pytest.raises(UserError) as caught:
        UNet(**arguments)  # type: ignore[arg-type]
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
