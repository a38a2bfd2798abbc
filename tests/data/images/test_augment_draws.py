"""What every augmentation of whole batches keeps: its draws are functions of (seed, view, index), of nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_lightning.data import (
    Augmentation,
    ColorJitter,
    Cutout,
    Flip,
    Jitter,
    Mixing,
    Mixup,
    PadCrop,
    RandomErasing,
    RandomResizedCrop,
)
from kd_lightning.errors import UserError
from kd_lightning.randomness import permutation

AUGMENTATIONS = [
    Jitter(2),
    PadCrop(4),
    Flip(),
    Cutout(5),
    Cutout(4, [9, 8, 7]),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandomResizedCrop((0.2, 1.0)),
    RandomErasing(0.9, fill=[9, 8, 7]),
]
each = pytest.mark.parametrize(
    "augment",
    AUGMENTATIONS,
    ids=lambda a: f"{type(a).__name__}{list(vars(a).values())}",
)
N = 200


def images(channels: int = 3) -> Tensor:
    return torch.randint(
        0,
        256,
        (N, channels, 9, 7),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


@each
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_in_any_batch(
    augment: Augmentation, layout: torch.memory_format
) -> None:
    x, index = images().contiguous(memory_format=layout), torch.arange(N) * 3 + 1
    before = x.clone()
    whole = augment(x, index, 3, 7)
    assert (whole.dtype, whole.shape) == (torch.uint8, x.shape)
    assert torch.equal(x, before)
    order = permutation(N, 1)
    assert torch.equal(augment(x[order], index[order], 3, 7), whole[order])
    for start in range(0, N, 23):
        part = order[start : start + 23]
        assert torch.equal(augment(x[part], index[part], 3, 7), whole[part])
    assert torch.equal(augment(x[[11, 11]], index[[11, 11]], 3, 7), whole[[11, 11]])


@each
def test_other_indices_seeds_and_views_draw_anew(augment: Augmentation) -> None:
    x, index = images()[:1].expand(N, -1, -1, -1), torch.arange(N)
    first = augment(x, index, 3, 7)
    for other in (
        augment(x, index, 4, 7),
        augment(x, index, 3, 8),
        augment(x, index + N, 3, 7),
    ):
        changed = (other != first).flatten(1).any(1).float().mean()
        assert changed > 0.3  # Flip changes half of them


@each
def test_an_empty_batch_stays_empty(augment: Augmentation) -> None:
    assert augment(images()[:0], torch.arange(0), 0, 0).shape == (0, 3, 9, 7)


@pytest.mark.parametrize(
    "augment", [*AUGMENTATIONS, Mixup(0.2)], ids=lambda a: type(a).__name__
)
def test_the_fingerprint_holds_every_argument(augment: Augmentation) -> None:
    assert augment.fingerprint() == {"name": type(augment).__name__, **vars(augment)}
    assert set(vars(augment)) == set(type(augment).__init__.__annotations__) - {
        "return"
    }


def test_the_base_of_mixing_mixes_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Mixing().mix(
            torch.zeros(1, 1, 2, 2),
            torch.zeros(1, 1, 2, 2),
            torch.zeros(1, dtype=torch.int64),
            0,
            0,
        )


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: PadCrop(0), "padding must be at least 1"),
    (lambda: Flip(0.0), "probability must be in"),
    (lambda: Flip(1.5), "probability must be in"),
    (lambda: Cutout(0), "size must be at least 1"),
    (lambda: Cutout(4, [0, 0, 256]), "values from 0 to 255"),
    (
        lambda: Cutout(4, [0])(images(), torch.arange(N), 0, 0),
        "has 1 values, but the images have 3",
    ),
    (lambda: ColorJitter(-0.1), "brightness must be"),
    (lambda: ColorJitter(saturation=float("nan")), "saturation must be"),
    (lambda: ColorJitter(hue=0.6), "hue must be at most 0.5"),
    (lambda: ColorJitter(), "nothing to change"),
    (lambda: Mixup(0), "alpha must be"),
    (lambda: Mixup(float("inf")), "alpha must be"),
]


@pytest.mark.parametrize(("make", "said"), MISTAKES)
def test_mistakes_are_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
