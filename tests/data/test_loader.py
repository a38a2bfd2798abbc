"""The loader: which rows, in which order, as which view; and processes that share a batch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from kd_lightning.data import BatchLoader, Source
from kd_lightning.types import CLEAN, Batch


class Numbers(Source):
    """A source of n samples that are their own row numbers."""

    def __init__(self, n: int) -> None:
        self.rows = torch.arange(n)
        self.target = self.rows
        self.split = "train"

    def batch(self, rows: Tensor, view: int) -> Batch:
        return Batch(rows.float(), rows, rows, view)


def rows(loader: BatchLoader) -> list[list[int]]:
    """The rows of an epoch, batch by batch."""
    return [batch.index.tolist() for batch in loader]


def flat(loader: BatchLoader) -> list[int]:
    return [row for batch in rows(loader) for row in batch]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("n", "size"), [(20, 5), (23, 5), (3, 5), (1, 1), (0, 4)])
def test_every_sample_once_an_epoch(n: int, size: int, shuffle: bool) -> None:
    loader = BatchLoader(Numbers(n), size, shuffle=shuffle, seed=1)
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = rows(loader)
        assert sorted(row for batch in batches for row in batch) == list(range(n))
        assert len(batches) == len(loader) == math.ceil(n / size)
        assert all(len(batch) == size for batch in batches[:-1])
        assert not batches or len(batches[-1]) == n - size * (len(batches) - 1)


def test_without_shuffle_the_order_is_the_sources() -> None:
    loader = BatchLoader(Numbers(11), 4)
    loader.set_epoch(5)
    assert flat(loader) == list(range(11))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    veteran = BatchLoader(Numbers(100), 8, shuffle=True, seed=3)
    for epoch in range(4):
        veteran.set_epoch(epoch)
        list(veteran)
    torch.manual_seed(1)
    fresh = BatchLoader(Numbers(100), 8, shuffle=True, seed=3)
    fresh.set_epoch(3)
    assert flat(fresh) == flat(veteran)
    assert flat(fresh) == flat(fresh)  # iterating alone changes nothing
    orders = {tuple(range(100))}
    for seed, epoch in itertools.product((3, 4), range(3)):
        loader = BatchLoader(Numbers(100), 8, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        orders.add(tuple(flat(loader)))
    assert len(orders) == 1 + 2 * 3


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert flat(BatchLoader(Numbers(50), 7, shuffle=True)) == flat(
        BatchLoader(Numbers(50), 50, shuffle=True)
    )


def test_lightning_finds_the_sampler_and_the_epoch_takes_effect() -> None:
    loader = BatchLoader(Numbers(100), 8, shuffle=True, views=None)
    first = flat(loader)
    loader.batch_sampler.sampler.set_epoch(1)  # as Lightning's fit loop calls it
    assert flat(loader) != first
    assert loader.view == 1


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        (3, [0, 1, 2, 0, 1, 2, 0]),
        (1, [0] * 7),
        (0, [CLEAN] * 7),
    ],
)
def test_views_follow_the_epoch(views: int | None, expected: list[int]) -> None:
    loader = BatchLoader(Numbers(6), 3, views=views)
    seen = []
    for epoch in range(7):
        loader.set_epoch(epoch)
        epochs = {batch.view for batch in loader}
        assert epochs == {loader.view}
        seen.append(loader.view)
    assert seen == expected
    assert CLEAN == -1


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "n", [24, 26, 27]
)  # even; a last batch of two, and of three: one each, two and one
def test_two_processes_serve_what_one_serves_with_the_double_batch(
    n: int, shuffle: bool
) -> None:
    one = BatchLoader(Numbers(n), 6, shuffle=shuffle, seed=5)
    two = [
        BatchLoader(Numbers(n), 3, shuffle=shuffle, seed=5, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for epoch in range(2):
        for loader in (one, *two):
            loader.set_epoch(epoch)
        assert len(one) == len(two[0]) == len(two[1])
        together = list(zip(rows(two[0]), rows(two[1]), strict=True))
        # Step by step the same samples, so that each optimizer step sees what it sees in the one process.
        assert [sorted(a + b) for a, b in together] == [
            sorted(batch) for batch in rows(one)
        ]
        assert all(0 <= len(a) - len(b) <= 1 for a, b in together)
        assert sorted(row for a, b in together for row in a + b) == list(range(n))


@pytest.mark.parametrize("fetch", [0, 12])
@pytest.mark.parametrize("skip", [0, 1, 4, 5])
def test_a_resumed_epoch_leaves_out_what_it_had(skip: int, fetch: int) -> None:
    whole = rows(
        BatchLoader(Numbers(23), 2, shuffle=True, world_size=2, rank=1, fetch=fetch)
    )
    loader = BatchLoader(
        Numbers(23), 2, shuffle=True, world_size=2, rank=1, fetch=fetch
    )
    loader.skip = skip
    assert rows(loader) == whole[skip:]
    assert rows(loader) == whole  # once
