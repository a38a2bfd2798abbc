"""Which rows, in which view, in which step: a pure function of seed, epoch and process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.randomness import hashed, permutation, weighted_draws
from kd_lightning.types import CLEAN


class Step(NamedTuple):
    """What one process fetches for one step.

    Attributes:
        rows: int64 `(B,)`, positions in the source.
        views: the augmentation draws in which each of these rows is shown.
        placeholder: True if this process has no sample left in the step. It fetches one anyway, to
            take part in the collective calls; losses and metrics ignore it.
        paired: True if the second half of the rows are companions of the first; see `companions`.
    """

    rows: Tensor
    views: tuple[int, ...]
    placeholder: bool = False
    paired: bool = False


def companions(classes: Tensor, *parts: int | str) -> Tensor:
    """For each sample another one of its class, as a function of the parts (seed, epoch).

    All other samples of the class are equally likely, up to a bias of their number over 2**63. The
    only sample of a class is its own companion.

    Args:
        classes: int64 `(n,)`.
        parts: see `kd_lightning.randomness`.

    Returns:
        int64 `(n,)`, positions of the samples.
    """
    samples = torch.arange(len(classes))
    _, number, counts = classes.unique(return_inverse=True, return_counts=True)
    # Sorted by class, each class is one contiguous span.
    by_class = torch.argsort(number, stable=True)
    starts = counts.cumsum(0) - counts
    # The place of each sample within the span of its class.
    places = torch.empty_like(by_class)
    sorted_number = number[by_class]
    places[by_class] = samples - starts[sorted_number]
    # A step of 1 to count - 1 places within the class, around its end, never returns to the sample.
    class_size = counts[number]
    others = (class_size - 1).clamp(min=1)
    drawn = hashed(samples, "companions", *parts)
    steps = 1 + drawn.remainder(others)
    companion_places = (places + steps).remainder(class_size)
    return by_class[starts[number] + companion_places]


@dataclass(frozen=True)
class Schedule:
    """Whole batches in an order that is a function of (seed, epoch).

    The batches of all processes together are the batches of one process with
    `world_size * batch_size`.

    Attributes:
        num_samples: of the source.
        batch_size: samples per batch, on each device.
        shuffle: a new order in every epoch; otherwise the source's own.
        seed: of the order.
        views: number of different augmentation draws; epoch e shows view `e mod views`. `None`: a
            new view in every epoch; 0: no augmentation, the clean view.
        copies: views of each sample in one batch.
        rank: this process, of `world_size`.
        world_size: number of processes.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        weights: float64 `(n,)`, for an order that draws each sample with a probability
            proportional to its weight, with replacement; `None`: each sample once.
        classes: the class of each sample, int64 `(n,)`, if each sample of a batch is to be followed
            by a companion of its class; `None`: no companions.
    """

    num_samples: int
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    views: int | None = 0
    copies: int = 1
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    weights: Tensor | None = None
    classes: Callable[[], Tensor] | None = None

    @property
    def joint_batch_size(self) -> int:
        """Samples that all processes together take in one step."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """The number of steps of an epoch."""
        if self.drop_last:
            return self.num_samples // self.joint_batch_size
        return -(-self.num_samples // self.joint_batch_size)

    def views_of(self, epoch: int) -> tuple[int, ...]:
        """The views that an epoch shows: consecutive draws, `copies` of them per epoch."""
        if self.views == 0:
            return (CLEAN,) * self.copies
        first = epoch * self.copies
        draws = range(first, first + self.copies)
        if self.views is None:
            return tuple(draws)
        return tuple(draw % self.views for draw in draws)

    def joint_batches(self, epoch: int) -> Iterator[Tensor]:
        """The rows of each batch of all processes together."""
        if self.num_samples == 0:
            return
        order = torch.arange(self.num_samples)
        if self.weights is not None:
            order = weighted_draws(self.weights, self.seed, epoch)
        elif self.shuffle:
            order = permutation(self.num_samples, self.seed, epoch)
        yield from order.split(self.joint_batch_size)

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """This process's steps of an epoch.

        Args:
            epoch: from 0.
            first: the step to begin with; a resumed run skips those that it has done.
        """
        views = self.views_of(epoch)
        companion = self._companions(epoch)
        for rows in itertools.islice(self.joint_batches(epoch), first, len(self)):
            own = rows[self.rank :: self.world_size]
            placeholder = len(own) == 0
            # Every process takes every step, because gradients are averaged over all of them.
            if placeholder:
                own = rows[:1]
            is_paired = companion is not None
            if companion is not None:
                # A companion belongs to the process of its sample.
                own = torch.cat([own, companion[own]])
            yield Step(own, views, placeholder, paired=is_paired)

    def _companions(self, epoch: int) -> Tensor | None:
        """The companion of each sample in an epoch; `None` if there are none."""
        if self.classes is None:
            return None
        return companions(self.classes(), self.seed, epoch)


@dataclass(frozen=True)
class BucketSchedule(Schedule):
    """Puts samples of similar length into one batch, so that little is spent on padding.

    Each epoch's permutation is cut into pools of `pool` batches. Each pool is sorted by length and
    cut into batches, and the batches of all pools are shuffled. Without shuffling the whole source
    is one pool. A short batch comes last.

    Attributes:
        lengths: the length of each sample, int64 `(n,)`, in a view.
        pool: how many batches are sorted together; 1 gives random batches.
    """

    lengths: Callable[[int], Tensor] = lambda view: torch.empty(0, dtype=torch.int64)
    pool: int = 32

    def joint_batches(self, epoch: int) -> Iterator[Tensor]:
        """The samples of each joint batch of an epoch, int64 `(batch,)`."""
        if self.num_samples == 0:
            return
        size = self.joint_batch_size
        # One view decides the lengths: all copies of a sample are in one batch.
        view = self.views_of(epoch)[0]
        lengths = self.lengths(view)
        if not self.shuffle:
            yield from torch.argsort(lengths, stable=True).split(size)
            return
        order = permutation(self.num_samples, self.seed, epoch)
        # Only full batches move: the short one stays last, where it may be dropped.
        in_whole_batches = self.num_samples // size * size
        batches: list[Tensor] = []
        if in_whole_batches > 0:
            for pool in order[:in_whole_batches].split(size * self.pool):
                by_length = torch.argsort(lengths[pool], stable=True)
                batches.extend(pool[by_length].split(size))
        for position in permutation(len(batches), self.seed, epoch, "batches").tolist():
            yield batches[position]
        if in_whole_batches < self.num_samples:
            yield order[in_whole_batches:]
