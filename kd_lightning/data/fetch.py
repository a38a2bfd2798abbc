"""From the steps of a schedule to batches: several small ones at once, ahead of time, joined with the teacher's outputs."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.data.schedule import Step
from kd_lightning.data.source import Source, batch_of_views
from kd_lightning.types import UNLABELLED, Batch

Join = Callable[[Batch, Tensor], Batch]
"""Adds to a batch what is known about its rows of the source split, int64 `(B,)` on the CPU."""


@dataclass
class Fetch:
    """Fetches batches in the calling thread.

    Attributes:
        source: the samples.
        at_once: how many samples to ask the source for at once if batches are smaller: fewer and
            larger operations. 0 fetches each batch by itself.
        join: called with each batch and its rows of the source split; cached teacher outputs join
            the batch here, on the CPU, so that no training step waits for the device.
        pin: whether to put batches in page-locked memory, from which copies to a GPU do not block.
    """

    source: Source
    at_once: int = 0
    join: Join | None = None
    pin: bool = False

    def batches(self, steps: Iterator[Step], batch_size: int) -> Iterator[Batch]:
        """The batch of each step, in order."""
        group_size = max(1, self.at_once // batch_size)
        split_rows = self.source.rows.cpu() if self.join is not None else None
        while group := list(itertools.islice(steps, group_size)):
            for step, batch in zip(group, self._fetch(group), strict=True):
                if self.join is not None and split_rows is not None:
                    index = split_rows[step.rows]
                    # The batch shows all samples of the step once per view.
                    index = index.repeat(len(step.views))
                    batch = self.join(batch, index)
                yield batch.pin_memory() if self.pin else batch

    def _fetch(self, group: list[Step]) -> Iterator[Batch]:
        """The batches of several steps, with one request to the source if possible."""
        views = group[0].views
        if len(group) == 1 or len(views) > 1:
            for step in group:
                yield self._alone(step)
            return
        rows = torch.cat([step.rows for step in group])
        together = self.source.batch(rows, views[0])
        if together.positions is not None:
            # Rows are not aligned with samples, so the batch cannot be cut without a copy.
            for step in group:
                yield self._alone(step)
            return
        start = 0
        for step in group:
            stop = start + len(step.rows)
            yield _marked(together.slice(start, stop), step)
            start = stop

    def _alone(self, step: Step) -> Batch:
        return _marked(batch_of_views(self.source, step.rows, step.views), step)


def _marked(batch: Batch, step: Step) -> Batch:
    """The batch of a step, with what the step says about its samples."""
    batch.placeholder = step.placeholder
    if step.paired:
        batch.paired = True
        # A copy, because the target may be a view of what several batches share.
        batch.target = batch.target.clone()
        batch.target[len(batch) // 2 :] = UNLABELLED
    return batch


class _Failure:
    """An exception that the prefetching thread raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def prefetched(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, made ahead of time by a thread.

    The order and the content do not change: batches are functions of the schedule alone.

    Args:
        batches: consumed by the thread.
        depth: how many batches may wait.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(item: object) -> None:
        # A consumer that stops early leaves the queue full, so waiting must end.
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for batch in batches:
                offer(batch)
                if stopped.is_set():
                    return
        except BaseException as error:
            offer(_Failure(error))
        else:
            offer(_END)

    thread = threading.Thread(target=produce, name="kd-prefetch", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            assert isinstance(item, Batch)
            yield item
    finally:
        stopped.set()
        thread.join()
