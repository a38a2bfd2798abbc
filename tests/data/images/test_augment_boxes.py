"""Augmentations that draw boxes: which ones are drawn, and what becomes of their pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from kd_lightning.data import (
    CutMix,
    DigitsDataModule,
    Mixing,
    RandomErasing,
    RandomResizedCrop,
)
from kd_lightning.data.images.boxes import draw_boxes
from kd_lightning.errors import UserError

N = 2_000


def images(n: int = N, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        1, 256, (n, channels, 20, 30), dtype=torch.uint8, generator=generator
    )


def test_boxes_have_the_areas_and_shapes_and_lie_inside() -> None:
    x = torch.empty(N, 1, 200, 300)
    boxes = draw_boxes(x, torch.arange(N), (0.1, 0.4), (0.5, 2.0), 0, "test")
    area = boxes.height * boxes.width / 60_000
    assert 0.098 < float(area.min()) < 0.11
    assert 0.39 < float(area.max()) < 0.402
    assert float(area.mean()) == pytest.approx(0.25, abs=0.01)
    logs = (boxes.width / boxes.height).log2()
    assert -1.02 < float(logs.min()) < -0.95
    assert float(logs.mean()) == pytest.approx(0, abs=0.05)
    assert int(boxes.top.min()) == 0
    assert int((boxes.top + boxes.height).max()) <= 200
    assert int((boxes.left + boxes.width).max()) <= 300
    # Every place is equally likely.
    free = 200 - boxes.height
    movable = free > 20
    shares = boxes.top[movable] / free[movable]
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.02)


def test_a_crop_is_resized_as_torchvision_does() -> None:
    x = images(50)
    index = torch.arange(50)
    crops = RandomResizedCrop((0.1, 1.0))
    boxes = draw_boxes(x, index, crops.scale, crops.ratio, 3, 1, "random_resized_crop")
    for i, got in enumerate(crops(x, index, 3, 1)):
        place = [int(value[i]) for value in boxes]
        expected = v2.resized_crop(x[i].float(), *place, [20, 30], antialias=False)
        # Differs by rounding.
        assert float((got.float() - expected).abs().max()) <= 0.51


def test_the_whole_image_stays_as_it_is() -> None:
    x = images(5)[..., :20]
    assert torch.equal(
        RandomResizedCrop((1.0, 1.0), (1.0, 1.0))(x, torch.arange(5), 0, 0), x
    )


def test_a_rectangle_is_erased_in_a_share_of_the_images() -> None:
    x = images()
    got = RandomErasing(0.25, fill=[0, 0, 0])(x, torch.arange(N), 0, 0)
    changed = (got != x).any(1)
    assert float(changed.flatten(1).any(1).float().mean()) == pytest.approx(
        0.25, abs=0.03
    )
    assert torch.equal(got[:, 0] == 0, changed)
    for mask in changed[changed.flatten(1).any(1)][:50]:
        rows = mask.any(1)
        columns = mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert 0.01 < float(mask.float().mean()) < 0.36


def test_a_box_of_the_partner_is_pasted_and_the_share_is_that_of_the_area() -> None:
    x = torch.zeros(N, 2, 40, 50)
    y = torch.ones(N, 2, 40, 50)
    mixed, share = CutMix().mix(x, y, torch.arange(N), 0, 0)
    torch.testing.assert_close(share, 1 - mixed.mean((1, 2, 3)))
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    for mask in mixed[:50, 0].bool():
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0))
    # For alpha = 1 the area before cutting off is uniform, and so side = sqrt(uniform). Of a side
    # whose center is uniform, side * (1 - side / 4) lies inside on average, in each direction.
    side = torch.linspace(0, 1, 10_001).sqrt()
    expected = 1 - float(((side * (1 - side / 4)) ** 2).mean())
    assert float(share.mean()) == pytest.approx(expected, abs=0.03)


def test_cutmix_is_a_function_of_seed_view_and_index() -> None:
    x = torch.randn(40, 1, 8, 10)
    y = torch.randn(40, 1, 8, 10)
    index = torch.arange(40)
    mixed, share = CutMix().mix(x, y, index, 3, 1)
    order = torch.arange(39, -1, -1)
    again, other = CutMix().mix(x[order], y[order], index[order], 3, 1)
    assert torch.equal(again, mixed[order])
    assert torch.equal(other, share[order])
    assert not torch.equal(CutMix().mix(x, y, index, 4, 1)[1], share)
    assert not torch.equal(CutMix().mix(x, y, index, 3, 2)[1], share)


def test_cutmix_in_a_datamodule() -> None:
    data = DigitsDataModule(augment=[CutMix()], views=1)
    batch = data.source("train").batch(torch.arange(64), 0)
    assert batch.share is not None
    assert batch.partner is not None
    assert isinstance(CutMix(), Mixing)
    assert 0 < float(batch.share.min()) + 1e-6 < 1


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: RandomResizedCrop((0.0, 1.0)), "RandomResizedCrop: scale must be"),
        (lambda: RandomResizedCrop((0.5, 0.4)), "two ascending numbers"),
        (lambda: RandomResizedCrop((0.5, 1.5)), "in (0, 1]"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.0)), "ratio must be"),
        (lambda: RandomErasing(0.0), "probability must be in (0, 1]"),
        (lambda: RandomErasing(fill=[256]), "values from 0 to 255"),
        (
            lambda: RandomErasing(1.0, fill=[1])(images(2), torch.arange(2), 0, 0),
            "has 1 values",
        ),
        (lambda: CutMix(0.0), "CutMix: alpha must be"),
    ],
)
def test_mistakes(make: Callable[[], object], part: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert part in str(caught.value)
