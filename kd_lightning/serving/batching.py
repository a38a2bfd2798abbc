"""Joins concurrent requests to batches, which cost little more than one sample."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kd_lightning.data.new_samples import Content, NewSample
from kd_lightning.serving.inputs import Prediction, predict_samples
from kd_lightning.serving.network import LoadedNetwork


class QueueFull(Exception):  # noqa: N818 - a state of the service, not a mistake
    """As many requests as allowed wait already."""


@dataclass
class Job:
    """A sample that waits for its prediction.

    Attributes:
        content: of the sample.
        done: receives the prediction and the size of its batch.
    """

    content: Content
    done: asyncio.Future[tuple[Prediction, int]]


class Batcher:
    """Collects samples for a short time, and predicts them in one forward pass.

    Only one pass runs at a time, in a thread of its own, so that the event loop stays
    free.

    Args:
        network: that predicts.
        max_batch: the most samples of a pass.
        max_wait_s: how long the first sample of a batch waits for others, in seconds.
        max_queue: the most requests in progress.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
    ) -> None:
        self.network = network
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.max_queue = max_queue
        self.in_progress = 0
        """Requests that were admitted and not answered yet."""
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to predict; needs a running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End after the pass that runs."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._thread.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request, before its body is read: this bounds the memory of bodies.

        Raises:
            QueueFull: if as many requests as allowed are in progress.
        """
        if self.in_progress >= self.max_queue:
            raise QueueFull
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1

    async def predict(self, content: Content) -> tuple[Prediction, int]:
        """The prediction of a sample, and how many samples were predicted with it."""
        done: asyncio.Future[tuple[Prediction, int]]
        done = asyncio.get_running_loop().create_future()
        await self._queue.put(Job(content, done))
        return await done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._next_batch()
            contents = [job.content for job in jobs]
            try:
                predictions = await loop.run_in_executor(
                    self._thread, self._predict, contents
                )
            except Exception as error:
                # A defect of ours must not end the service for all other requests.
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
                continue
            for job, prediction in zip(jobs, predictions, strict=True):
                # A client that has gone has canceled its request.
                if not job.done.done():
                    job.done.set_result((prediction, len(jobs)))

    async def _next_batch(self) -> list[Job]:
        """The first job that arrives, and those that follow it soon."""
        jobs = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.max_wait_s):
                while len(jobs) < self.max_batch:
                    jobs.append(await self._queue.get())
        return jobs

    def _predict(self, contents: Sequence[Content]) -> list[Prediction]:
        samples = [NewSample("the input", content) for content in contents]
        return list(predict_samples(self.network, samples, len(samples)))
