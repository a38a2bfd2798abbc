"""Decodes image files to uint8 arrays in several threads, and computes channel statistics."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.images.picture import as_shown, check_size, open_picture
from kd_lightning.data.images.tree import Tree

Pixels = NDArray[np.uint8]

_CHUNK_SIZE = 256


def decode_image(tree: Tree, name: str, size: int | None, grey: bool) -> Pixels:
    """Decode one image of a tree; see `decode_content`.

    Args:
        tree: the tree that holds the image.
        name: name of the file in the tree.
        size: resize the shorter side to this and crop the central square; `None`: unchanged.
        grey: decode to one channel instead of three.

    Returns:
        uint8 `(C, H, W)`.

    Raises:
        UserError: if the image cannot be read or has too many pixels.
    """
    return decode_content(tree.read(name), f"{tree.path}: {name}", size, grey)


def decode_content(content: bytes, owner: str, size: int | None, grey: bool) -> Pixels:
    """Decode an image file to the pixels that a viewer shows; see `picture.py`.

    Args:
        content: of the file.
        owner: what an error message calls the file.
        size: resize the shorter side to this and crop the central square; `None`: unchanged.
        grey: decode to one channel instead of three.

    Returns:
        uint8 `(C, H, W)`.

    Raises:
        UserError: if the image cannot be read or has too many pixels.
    """
    image = as_shown(open_picture(content, owner), grey, owner)
    if size is not None:
        # Imported here, because importing torchvision is slow.
        from torchvision.transforms.v2 import functional as v2

        # The longer side may become very long.
        longer = size * max(image.size) // min(image.size)
        check_size(size * longer, f"{owner}, resized to data.size={size},")
        # The shorter side gets the size; the longer one is cropped on both ends.
        resized = v2.resize(image, [size])
        image = v2.center_crop(resized, [size, size])
    array: Pixels = np.asarray(image, dtype=np.uint8)
    if grey:
        return array[None]
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def decode_chunks(
    names: list[str], decode: Callable[[str], Pixels]
) -> Iterator[Pixels]:
    """Decode images in order, a chunk at a time.

    Several threads work a few chunks ahead of the consumer.

    Args:
        names: names of the images.
        decode: decodes one image to `(C, H, W)`; all must have one shape.

    Yields:
        uint8 `(n, C, H, W)` with the next images.
    """

    def decode_chunk(chunk: list[str]) -> Pixels:
        images = [decode(name) for name in chunk]
        return np.stack(images)

    num_workers = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_workers)
    pending: deque[Future[Pixels]] = deque()
    try:
        for start in range(0, len(names), _CHUNK_SIZE):
            chunk = names[start : start + _CHUNK_SIZE]
            pending.append(pool.submit(decode_chunk, chunk))
            # Bounds the memory if the consumer is slower than the threads.
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ChannelStatistics:
    """Accumulates the mean and the standard deviation of each channel.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros((channels, 256), dtype=np.int64)

    def update(self, images: Pixels) -> None:
        """Add images, uint8 `(n, C, H, W)`."""
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(images[:, channel].ravel(), minlength=256)

    def compute(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, of pixel values in [0, 1], to four decimals."""
        values = np.arange(256) / 255
        share = self._counts / self._counts.sum(1, keepdims=True)
        mean = share @ values
        squares = (values - mean[:, None]) ** 2
        variance = (share * squares).sum(1)
        means: list[float] = []
        stds: list[float] = []
        for channel_mean, channel_std in zip(mean, np.sqrt(variance), strict=True):
            means.append(round(float(channel_mean), 4))
            # A constant channel has a deviation of 0, which nothing can be divided by.
            stds.append(round(float(channel_std), 4) or 1.0)
        return means, stds
