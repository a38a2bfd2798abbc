"""The loader that Lightning iterates over: a schedule of steps and the fetch of their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

from torch import Tensor

from kd_lightning.data.fetch import Fetch, Join, prefetched
from kd_lightning.data.schedule import BucketSchedule, Schedule
from kd_lightning.data.source import Source
from kd_lightning.data.windows import in_windows
from kd_lightning.types import Batch


class BatchLoader:
    """Serves a source in whole batches; the order is a function of (seed, epoch).

    Lightning calls `batch_sampler.sampler.set_epoch` before each epoch; the loader is its own
    sampler.

    Args:
        source: the samples.
        batch_size: samples per batch, on each device.
        shuffle, seed, views, copies, rank, world_size: see Schedule.
        fetch: ask the source for up to this many samples at once if batches are smaller.
        prefetch: make this many batches ahead of time, in a thread; 0: in the training loop.
        pin: put batches in page-locked memory, for copies to a GPU that do not block.
        drop_last, weights: see Schedule.
        repeat: serve the batches of the first epoch in every epoch.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        views: int | None = 0,
        copies: int = 1,
        rank: int = 0,
        world_size: int = 1,
        fetch: int = 0,
        prefetch: int = 0,
        pin: bool = False,
        drop_last: bool = False,
        weights: Tensor | None = None,
        repeat: bool = False,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.views = views
        self.copies = copies
        self.rank = rank
        self.world_size = world_size
        self.fetch = fetch
        self.prefetch = prefetch
        self.pin = pin
        self.drop_last = drop_last
        self.weights = weights
        self.repeat = repeat
        self.epoch = 0
        self.join: Join | None = None
        """Adds cached teacher outputs to each batch; set by the module that trains."""
        self.accumulate: Callable[[], int] = lambda: 1
        """How many batches add up to one optimizer step; set by the datamodule."""
        self.classes: Callable[[Source], Tensor] | None = None
        """The class of each sample, if each is to be followed by a companion; see Schedule."""
        self.skip = 0
        """Batches to leave out once: those of the epoch that a resumed run has done already."""
        # Lightning calls `set_epoch` of a batch sampler's sampler.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration serves."""
        # A repeated loader shows the batches of the first epoch in every epoch.
        self.epoch = 0 if self.repeat else epoch

    def state_dict(self) -> dict[str, int]:
        """Marks the loader as one that can resume within an epoch; Lightning asks for it."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the epoch."""
        self.epoch = state["epoch"]

    @property
    def view(self) -> int:
        """The view that this epoch shows; the first one, if it shows several."""
        return self.schedule().views_of(self.epoch)[0]

    def schedule(self) -> Schedule:
        """The steps that the next iteration serves."""
        return Schedule(
            num_samples=len(self.source),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            views=self.views,
            copies=self.copies,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
            weights=self.weights,
            classes=None
            if self.classes is None
            else partial(self.classes, self.source),
        )

    def __len__(self) -> int:
        return len(self.schedule())

    def __iter__(self) -> Iterator[Batch]:
        # A generator runs when the first batch is requested: Lightning creates the iterator before
        # it sets the epoch, and before a resumed run knows how many batches to skip.
        self.source.begin_epoch(self.epoch)
        first = self.skip
        self.skip = 0
        steps = self.schedule().steps(self.epoch, first)
        fetch = Fetch(self.source, self.fetch, self.join, self.pin)
        batches = fetch.batches(steps, self.batch_size)
        # A thread fetches batches ahead while the device computes.
        if self.prefetch > 0:
            batches = prefetched(batches, self.prefetch)
        size = self.accumulate()
        if size > 1:
            batches = in_windows(batches, size, first)
        yield from batches


class BucketLoader(BatchLoader):
    """Serves samples of similar length together; see BucketSchedule.

    Args:
        source: its `lengths` are not `None`.
        batch_size: samples per batch, on each device.
        pool: how many batches are sorted by length together; 1 gives random batches.
        options: see BatchLoader.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        pool: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        views: int | None = 0,
        copies: int = 1,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__(
            source,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            views=views,
            copies=copies,
            rank=rank,
            world_size=world_size,
            prefetch=prefetch,
            pin=pin,
        )
        self.pool = pool

    def _lengths(self, view: int) -> Tensor:
        lengths = self.source.lengths(view)
        assert lengths is not None, "BucketLoader needs a source with lengths"
        return lengths

    def schedule(self) -> BucketSchedule:
        """Batches of samples of similar length."""
        return BucketSchedule(
            **vars(super().schedule()),
            lengths=self._lengths,
            pool=self.pool,
        )
