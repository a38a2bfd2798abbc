"""Four rotations of one draw, as views: against torch's own rotation, and what they do to labels."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.data import (
    Cutout,
    DigitsDataModule,
    Flip,
    ImageSource,
    PadCrop,
    Rotations,
    SegmentationSource,
)
from kd_lightning.data.images.masks import labels_of_masks
from kd_lightning.data.source import batch_of_views
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN, UNLABELLED

IMAGES = torch.randint(
    1, 256, (5, 3, 6, 6), generator=torch.Generator().manual_seed(0)
).to(torch.uint8)
INDEX = torch.arange(5)


def test_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    turned = [Rotations()(image, torch.tensor([0]), 0, view) for view in range(5)]
    assert [each.flatten().tolist() for each in turned] == [
        [1, 2, 3, 4],
        [2, 4, 1, 3],
        [4, 3, 2, 1],
        [3, 1, 4, 2],
        [1, 2, 3, 4],
    ]


def test_four_views_are_turns_of_one_draw() -> None:
    crop = PadCrop(2)
    rotations = Rotations([crop, Flip()])
    for draw in (0, 3):
        original = Flip()(crop(IMAGES, INDEX, 7, draw), INDEX, 7, draw)
        for turns in range(4):
            shown = rotations(IMAGES, INDEX, 7, 4 * draw + turns)
            assert torch.equal(shown, original.rot90(turns, (2, 3)))
    assert not torch.equal(
        rotations(IMAGES, INDEX, 7, 0), rotations(IMAGES, INDEX, 7, 4)
    )
    # A function of (seed, view, index): the same for a part of the batch, other for another seed.
    part = rotations(IMAGES[2:], INDEX[2:], 7, 5)
    assert torch.equal(part, rotations(IMAGES, INDEX, 7, 5)[2:])
    assert not torch.equal(part, rotations(IMAGES[2:], INDEX[2:], 8, 5))


@pytest.mark.parametrize("keep_labels", [False, True])
def test_a_turned_image_is_unlabelled(keep_labels: bool) -> None:
    data = DigitsDataModule(
        augment=[Rotations([PadCrop(1)], keep_labels=keep_labels)], copies=4
    )
    source = data.source("train")
    rows = torch.arange(3)
    labels = source.target[source.rows[rows]]
    batch = batch_of_views(source, rows, (8, 9, 10, 11))
    turned = labels if keep_labels else torch.full_like(labels, UNLABELLED)
    assert torch.equal(batch.target, torch.cat([labels, turned, turned, turned]))
    assert torch.equal(source.batch(rows, CLEAN).target, labels)
    images = batch.inputs
    assert isinstance(images, torch.Tensor)
    first, *others = images.split(3)
    for turns, other in enumerate(others, start=1):
        assert torch.equal(other, first.rot90(turns, (2, 3)))


def test_a_mask_turns_with_its_image() -> None:
    """The classes of pixels stay known in every view, and are where the pixels are."""
    masks = IMAGES[:, 0] % 3
    images = ImageSource(
        images=masks[:, None],
        target=torch.zeros(5, dtype=torch.int64),
        rows=INDEX,
        split="train",
        mean=torch.zeros(1),
        std=torch.full((1,), 1 / 255),
        augment=[Rotations([Flip()])],
        seed=0,
        channels=1,
    )
    source = SegmentationSource(images, masks)
    for view in range(4):
        batch = source.batch(INDEX, view)
        assert isinstance(batch.inputs, torch.Tensor)
        shown = batch.inputs[:, 0].round().to(torch.uint8)
        assert torch.equal(labels_of_masks(shown), batch.target)
    assert not torch.equal(source.batch(INDEX, 1).target, source.batch(INDEX, 0).target)


def test_the_fingerprint_covers_what_is_inside() -> None:
    prints = [
        Rotations([PadCrop(2)]).fingerprint(),
        Rotations([PadCrop(3)]).fingerprint(),
        Rotations().fingerprint(),
        Rotations(keep_labels=True).fingerprint(),
    ]
    assert prints[0] == {
        "name": "Rotations",
        "augment": [{"name": "PadCrop", "padding": 2}],
        "keep_labels": False,
    }
    assert all(prints.count(each) == 1 for each in prints)


def test_refusals() -> None:
    with pytest.raises(UserError, match="Rotations: Cutout is not geometric"):
        Rotations([Cutout(2)])
    with pytest.raises(UserError, match="square images, got 6 x 4 pixels"):
        Rotations()(IMAGES[..., :4], INDEX, 0, 1)
