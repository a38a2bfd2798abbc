"""Crops, flips and cut-outs against torchvision on one image at a time, and how often each is drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from kd_lightning.data import Cutout, Flip, PadCrop
from kd_lightning.randomness import integers, uniform

N = 20_000


def images(n: int, height: int = 8, width: int = 6) -> Tensor:
    """Without black, so that padding shows."""
    return torch.randint(
        1,
        256,
        (n, 3, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def spread(counts: Tensor) -> float:
    """By how many standard deviations chi-square differs from what equally likely cells give."""
    expected = counts.sum() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return abs(float(chi_square) - freedom) / math.sqrt(2 * freedom)


def test_pad_crop_is_torchvisions_pad_and_crop() -> None:
    x, index = images(60), torch.arange(60)
    cropped = PadCrop(3)(x, index, 5, 2)
    drawn = integers(index, 0, 48, 5, 2, "pad_crop").tolist()
    for image, got, place in zip(x, cropped, drawn, strict=True):
        assert torch.equal(
            got, v2.crop(v2.pad(image, [3]), place // 7, place % 7, 8, 6)
        )
    assert len(set(drawn)) > 20


def test_all_crops_are_equally_likely() -> None:
    dot = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    dot[..., 2, 2] = 255
    where = (
        PadCrop(2)(dot.expand(N, -1, -1, -1), torch.arange(N), 0, 0)
        .flatten(1)
        .int()
        .argmax(1)
    )
    assert spread(torch.bincount(where, minlength=25).double()) < 5


def test_flip_is_torchvisions_on_those_drawn() -> None:
    x, index = images(60), torch.arange(60)
    mirrored = (uniform(index, 5, 2, "flip") < 0.3).tolist()
    for image, got, mirror in zip(x, Flip(0.3)(x, index, 5, 2), mirrored, strict=True):
        assert torch.equal(got, v2.horizontal_flip(image) if mirror else image)
    assert 0 < sum(mirrored) < 60
    assert torch.equal(Flip(1.0)(x, index, 5, 2), x.flip(-1))


def test_flips_come_as_often_as_they_are_asked_for() -> None:
    x = torch.tensor([[[[0, 1]]]], dtype=torch.uint8).expand(N, -1, -1, -1)
    for probability in (0.5, 0.1):
        share = Flip(probability)(x, torch.arange(N), 0, 0)[:, 0, 0, 0].double().mean()
        assert (
            abs(float(share) - probability)
            < 5 * (probability * (1 - probability) / N) ** 0.5
        )


def test_crop_and_flip_are_drawn_independently() -> None:
    x = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    x[..., 2, 2] = 255
    index = torch.arange(N)
    down = (
        PadCrop(2)(x.expand(N, -1, -1, -1), index, 0, 0).flatten(1).int().argmax(1) // 5
    )
    mirrored = Flip()(
        torch.tensor([[[[0, 1]]]], dtype=torch.uint8).expand(N, -1, -1, -1), index, 0, 0
    )[:, 0, 0, 0]
    assert spread(torch.bincount(down * 2 + mirrored, minlength=10).double()) < 5


def slow_cutout(image: Tensor, y: int, x: int, size: int, fill: list[int]) -> Tensor:
    """The square from `middle - size // 2`, pixel for pixel."""
    out = image.clone()
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if (
                0 <= row - (y - size // 2) < size
                and 0 <= column - (x - size // 2) < size
            ):
                out[:, row, column] = torch.tensor(fill, dtype=torch.uint8)
    return out


def test_cutout_paints_one_square_around_any_pixel() -> None:
    x, index = images(40), torch.arange(40)
    middles = integers(index, 0, 47, 5, 2, "cutout").tolist()
    for size, fill in ((3, None), (4, [10, 20, 30])):
        for image, got, middle in zip(
            x, Cutout(size, fill)(x, index, 5, 2), middles, strict=True
        ):
            assert torch.equal(
                got,
                slow_cutout(image, middle // 6, middle % 6, size, fill or [0, 0, 0]),
            )


def test_cutout_middles_are_equally_likely() -> None:
    white = torch.full((1, 1, 4, 6), 255, dtype=torch.uint8).expand(N, -1, -1, -1)
    where = Cutout(1)(white, torch.arange(N), 0, 0).flatten(1).int().argmin(1)
    assert spread(torch.bincount(where, minlength=24).double()) < 5
