"""Class ids in as few bits as the number of classes allows."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.teachers.cache.packing import bits_per_id, pack, packed_size, unpack


@pytest.mark.parametrize(
    ("classes", "bits"),
    [(2, 1), (3, 2), (4, 2), (10, 4), (1000, 10), (30522, 15), (50257, 16)],
)
def test_ids_come_back(classes: int, bits: int) -> None:
    assert bits_per_id(classes) == bits
    generator = torch.Generator().manual_seed(classes)
    for count in (1, 2, 7, 8, 33):
        ids = torch.randint(classes, (50, count), generator=generator)
        ids[0] = classes - 1
        ids[1] = 0
        packed = pack(ids, classes)
        assert packed.dtype == torch.uint8
        assert packed.shape == (50, packed_size(count, classes))
        assert 8 * packed.shape[1] - count * bits < 8
        assert torch.equal(unpack(packed, count, classes), ids)


def test_by_hand() -> None:
    # Four bits each, the first id lowest: 1 + 16 * 2, then 9 alone.
    packed = pack(torch.tensor([[1, 2, 9]]), 10)
    assert packed.tolist() == [[33, 9]]


def test_ids_of_more_classes_than_memory_holds() -> None:
    ids = torch.tensor([[2**31 - 1, 0, 2**30 + 5]])
    assert torch.equal(unpack(pack(ids, 2**31), 3, 2**31), ids)
