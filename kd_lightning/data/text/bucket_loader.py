"""A loader that batches sentences of similar length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.text.sentences import TextSource
from kd_lightning.randomness import permutation
from kd_lightning.types import Batch


class BucketLoader(BatchLoader):
    """Batches sentences of similar length, which saves padding.

    The order of each epoch is a function of (seed, epoch). A permutation of the samples is cut into
    pools of `pool` batches; each pool is sorted by length and cut into batches; then the batches of
    all pools are shuffled. Without shuffling, the whole source is one pool. The last batch may be
    shorter than the others.

    Args:
        source: the samples.
        batch_size: number of samples per batch and device.
        pool: number of batches that are sorted together; 1: random batches.
        shuffle: see BatchLoader.
        seed: see BatchLoader.
        views: see BatchLoader.
        rank: see BatchLoader.
        world_size: see BatchLoader.
    """

    source: TextSource

    def __init__(
        self,
        source: TextSource,
        batch_size: int,
        *,
        pool: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        views: int | None = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            source,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            views=views,
            rank=rank,
            world_size=world_size,
        )
        self.pool = pool

    def steps(self) -> Iterator[Tensor]:
        """Yield the rows of each step, int64 `(b,)`, for all processes together."""
        step_size = self.batch_size * self.world_size
        lengths = self.source.lengths(self.view)
        if not self.shuffle:
            yield from torch.argsort(lengths, stable=True).split(step_size)
            return
        order = permutation(len(self.source), self.seed, self.epoch)
        # Only full batches are shuffled, so that a short one always comes last.
        full = len(order) // step_size * step_size
        batches: list[Tensor] = []
        if full:
            for pool in order[:full].split(step_size * self.pool):
                by_length = pool[torch.argsort(lengths[pool], stable=True)]
                batches.extend(by_length.split(step_size))
        batch_order = permutation(len(batches), self.seed, self.epoch, "batches")
        for number in batch_order.tolist():
            yield batches[number]
        if full < len(order):
            yield order[full:]

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.source):
            return
        view = self.view
        for rows in itertools.islice(self.steps(), self.skipped(), None):
            share = rows[self.rank :: self.world_size]
            if len(share):
                yield self.source.batch(share, view)
            else:
                # The last, short step has no sample for this process.
                ghost = self.source.batch(rows[:1], view)
                ghost.ghost = True
                yield ghost
