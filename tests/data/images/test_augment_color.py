"""Colour changes against torchvision on one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from kd_lightning.data import ColorJitter
from kd_lightning.data.images.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from kd_lightning.randomness import uniform

Adjust = Callable[[Tensor, Tensor], Tensor]

FACTORS = [0.0, 0.37, 1.0, 1.4, 2.5]
SHIFTS = [-0.5, -0.21, 0.0, 0.1, 0.5]
STEPS = [
    pytest.param(adjust_brightness, v2.adjust_brightness, FACTORS, id="brightness"),
    pytest.param(adjust_contrast, v2.adjust_contrast, FACTORS, id="contrast"),
    pytest.param(adjust_saturation, v2.adjust_saturation, FACTORS, id="saturation"),
    pytest.param(adjust_hue, v2.adjust_hue, SHIFTS, id="hue"),
]


def images(channels: int = 3) -> Tensor:
    """Noise, a grey, black, white, the pure colours, and a gradient."""
    x = torch.randint(
        0,
        256,
        (12, 3, 16, 16),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    x[1], x[2], x[3] = 93, 0, 255
    for i in range(6):
        x[4 + i] = torch.tensor(
            [255 * (i + 1 >> bit & 1) for bit in range(3)], dtype=torch.uint8
        )[:, None, None]
    x[10] = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return x[:, :channels]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("adjust", "theirs", "values"), STEPS)
def test_each_step_is_torchvisions_within_one_level(
    adjust: Adjust, theirs: Adjust, values: list[float], channels: int
) -> None:
    x = images(channels)
    changed = False
    for value in values:
        got = adjust(x.float(), torch.full((len(x), 1, 1, 1), value))
        for image, ours in zip(x, got, strict=True):
            expected = theirs(image, value)  # type: ignore[arg-type]
            assert (ours - expected.float()).abs().max() <= 1
            changed |= not torch.equal(expected, image)
        assert torch.equal(got, got.round().clamp(0, 255))
    assert changed == (channels == 3 or adjust in (adjust_brightness, adjust_contrast))


@pytest.mark.parametrize(("adjust", "theirs", "values"), STEPS)
def test_every_image_has_its_own_factor(
    adjust: Adjust, theirs: Adjust, values: list[float]
) -> None:
    x = images()[:5]
    got = adjust(x.float(), torch.tensor(values)[:, None, None, None])
    for image, ours, value in zip(x, got, values, strict=True):
        assert (ours - theirs(image, value).float()).abs().max() <= 1  # type: ignore[arg-type]


def test_the_order_is_brightness_contrast_saturation_hue() -> None:
    x, index = images(), torch.arange(12) + 40
    augment = ColorJitter(0.5, 0.4, 0.3, 0.2)
    got = augment(x, index, 6, 1)

    def drawn(name: str, half: float, middle: float = 1.0) -> Tensor:
        return (middle - half + 2 * half * uniform(index, 6, 1, "colour", name))[
            :, None, None, None
        ]

    expected = adjust_brightness(x.float(), drawn("brightness", 0.5))
    expected = adjust_contrast(expected, drawn("contrast", 0.4))
    expected = adjust_saturation(expected, drawn("saturation", 0.3))
    expected = adjust_hue(expected, drawn("hue", 0.2, 0.0))
    # Up to the rounding of the factors here, which is not to the bit that of the class.
    assert (got.float() - expected).abs().max() <= 1


@pytest.mark.parametrize(("amount", "low", "high"), [(0.4, 0.6, 1.4), (2.0, 0.0, 3.0)])
def test_factors_are_uniform(amount: float, low: float, high: float) -> None:
    n = 5000
    x = torch.full((n, 1, 1, 1), 80, dtype=torch.uint8)
    factors = (
        ColorJitter(brightness=amount)(x, torch.arange(n), 0, 0).flatten().double() / 80
    )
    # Brightness is cut down to whole levels: half a level is added back on average.
    assert (
        stats.kstest(
            (factors + 0.5 / 80).numpy(), stats.uniform(low, high - low).cdf
        ).statistic
        < 0.03
    )
    assert float(factors.min()) >= low - 1 / 80
    assert float(factors.max()) <= high


def test_what_is_zero_is_left_alone() -> None:
    x, index = images(), torch.arange(12)
    grey = x[1:4]
    assert torch.equal(
        ColorJitter(saturation=0.9)(grey[1:2], index[:1], 0, 0), grey[1:2]
    )  # black has no colour to change
    assert torch.equal(ColorJitter(hue=0.5)(grey, index[1:4], 0, 0), grey)
    only = ColorJitter(contrast=0.5)(x, index, 0, 0)
    factor = (0.5 + uniform(index, 0, 0, "colour", "contrast"))[:, None, None, None]
    assert torch.equal(only.float(), adjust_contrast(x.float(), factor))
