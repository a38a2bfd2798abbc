"""Serves a source in whole batches, in an order that is a function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from kd_lightning.data.source import Source
from kd_lightning.randomness import permutation
from kd_lightning.types import CLEAN, Batch


class BatchLoader:
    """Serves a source in whole batches; the order is a function of (seed, epoch), the view of the epoch.

    Lightning calls `batch_sampler.sampler.set_epoch` before each epoch; the loader is its own sampler.

    Args:
        source: the samples.
        batch_size: samples a batch, on each device.
        shuffle: a new order every epoch; otherwise the source's own.
        seed: of the order.
        views: number of different augmentation draws: epoch e shows view `e mod views`. `None`: a new view every epoch;
            0: no augmentation, the clean view.
        rank: this process, of `world_size`; the batches of all processes together are the batches of one process
            with `world_size * batch_size`.
        fetch: ask the source for up to this many samples at once, where a batch is smaller: fewer, larger operations.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        views: int | None = 0,
        rank: int = 0,
        world_size: int = 1,
        fetch: int = 0,
    ) -> None:
        self.source, self.batch_size, self.shuffle, self.seed = source, batch_size, shuffle, seed
        self.views, self.rank, self.world_size, self.fetch, self.epoch = (
            views,
            rank,
            world_size,
            fetch,
            0,
        )
        self.batch_sampler = SimpleNamespace(sampler=self)
        self.skip = 0
        """Batches to leave out, once: those of the epoch that a resumed run has had already."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """By which Lightning knows a loader that can go on within an epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]

    @property
    def view(self) -> int:
        """The view that this epoch shows."""
        if self.views == 0:
            return CLEAN
        return self.epoch if self.views is None else self.epoch % self.views

    def __len__(self) -> int:
        return -(-len(self.source) // (self.batch_size * self.world_size))

    def skipped(self) -> int:
        """How many batches this epoch leaves out; the next one leaves out none."""
        skipped, self.skip = self.skip, 0
        return skipped

    def __iter__(self) -> Iterator[Batch]:
        n, step = len(self.source), self.batch_size * self.world_size
        rows = permutation(n, self.seed, self.epoch) if self.shuffle else torch.arange(n)
        view = self.view
        ahead = max(1, self.fetch // self.batch_size)
        for first in range(self.skipped() * step, n, step * ahead):
            starts = range(first, min(n, first + step * ahead), step)
            shares = [rows[start : start + step][self.rank :: self.world_size] for start in starts]
            together = self.source.batch(torch.cat(shares) if len(shares) > 1 else shares[0], view)
            at = 0
            for share in shares:
                if len(share):
                    yield together.rows(at, at + len(share))
                else:  # this process has no sample in the last, short step
                    ghost = self.source.batch(rows[:1], view)
                    ghost.ghost = True
                    yield ghost
                at += len(share)
