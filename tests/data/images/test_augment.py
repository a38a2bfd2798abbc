"""Jitter against a slow shift of one image at a time, and its draws as a function of (seed, view, index)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.data import Augmentation, Jitter
from kd_lightning.errors import UserError
from kd_lightning.randomness import integers, permutation

Shift = tuple[int, int]
N = 25_000


def slow_shift(image: np.ndarray, shift: Shift) -> np.ndarray:
    """The image moved by (dy, dx), pixel for pixel; what comes in from outside is black."""
    out = np.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            from_y, from_x = y - shift[0], x - shift[1]
            if 0 <= from_y < height and 0 <= from_x < width:
                out[:, y, x] = image[:, from_y, from_x]
    return out


def dots(index: Tensor, seed: int, view: int) -> Tensor:
    """Each sample's shift, (B, 2), read off images of a single white pixel in the middle of 5x5."""
    images = torch.zeros(len(index), 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 255
    where = Jitter(2)(images, index, seed, view).flatten(1).int().argmax(1)
    return torch.stack([where // 5 - 2, where % 5 - 2], 1)


@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_image_is_one_of_the_slow_shifts(
    pixels: int, layout: torch.memory_format
) -> None:
    # No pixel is 0 and rows, columns and channels differ in number, so that no two shifts can be mistaken.
    images = torch.randint(
        1,
        256,
        (300, 3, 6, 9),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    before = images.clone()
    jittered = Jitter(pixels)(
        images.contiguous(memory_format=layout), torch.arange(300), seed=1, view=0
    )
    assert jittered.shape == images.shape
    assert jittered.dtype == torch.uint8
    assert torch.equal(images, before)
    reach = range(-pixels, pixels + 1)
    seen: set[Shift] = set()
    for image, result in zip(images.numpy(), jittered.numpy(), strict=True):
        fits = [
            (dy, dx)
            for dy in reach
            for dx in reach
            if np.array_equal(slow_shift(image, (dy, dx)), result)
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == (2 * pixels + 1) ** 2


def test_a_shift_does_not_depend_on_the_batch() -> None:
    whole = dots(torch.arange(500), seed=3, view=7)
    order = permutation(500, "order")
    torch.manual_seed(99)
    assert torch.equal(dots(order, seed=3, view=7), whole[order])
    for start in range(0, 500, 33):
        part = order[start : start + 33]
        assert torch.equal(dots(part, seed=3, view=7), whole[part])
    assert torch.equal(
        dots(torch.tensor([11, 11, 4]), seed=3, view=7), whole[[11, 11, 4]]
    )


@pytest.mark.parametrize(("seed", "view"), [(4, 7), (3, 8)], ids=["seed", "view"])
def test_other_seeds_and_views_shift_independently(seed: int, view: int) -> None:
    index = torch.arange(N)
    same = (dots(index, seed=3, view=7) == dots(index, seed=seed, view=view)).all(1)
    # One in 25 agrees by chance: 1,000 expected, with a standard deviation of 31.
    assert abs(int(same.sum()) - N / 25) < 150


def test_all_shifts_are_equally_likely() -> None:
    shifts = dots(torch.arange(N), seed=0, view=0)
    counts = torch.bincount(
        (shifts[:, 0] + 2) * 5 + shifts[:, 1] + 2, minlength=25
    ).double()
    chi_square = float(((counts - N / 25) ** 2 / (N / 25)).sum())
    # 24 degrees of freedom: mean 24, standard deviation 6.9. Jointly uniform, so dy and dx are independent too.
    assert chi_square < 24 + 5 * 48**0.5


def test_the_draws_are_those_that_stored_caches_replay() -> None:
    index = torch.arange(200)
    drawn = integers(index, 0, 24, 3, 7, "jitter")
    # A window that starts `drawn` pixels into the padding of 2 moves the image the other way.
    assert torch.equal(
        dots(index, seed=3, view=7), 2 - torch.stack([drawn // 5, drawn % 5], 1)
    )


def test_an_empty_batch_stays_empty() -> None:
    images = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    assert Jitter(2)(images, torch.arange(0), 0, 0).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("pixels", [0, -1])
def test_no_pixels_is_a_mistake(pixels: int) -> None:
    with pytest.raises(UserError, match="pixels must be at least 1") as caught:
        Jitter(pixels)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_holds_every_argument() -> None:
    assert Jitter(2).fingerprint() == {"name": "Jitter", "pixels": 2}
    assert Jitter(3).fingerprint() != Jitter(2).fingerprint()


def test_the_base_augments_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Augmentation()(
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(1, dtype=torch.int64),
            0,
            0,
        )
