"""Augmentation of whole batches, on the batch's device, as a function of (seed, view, index).

Libraries draw their parameters from a global generator; here they must come from outside, or no cache could replay them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import integers


class Augmentation:
    """Base of all augmentations: a function of images and of the draw that belongs to each.

    Subclasses keep every argument as a plain attribute: `fingerprint` is what a cache compares.
    """

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        """Augment `images` uint8 `(B, C, H, W)`; sample `i`'s parameters depend on `(seed, view, index[i])` alone."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, object]:
        return {"name": type(self).__name__, **vars(self)}


class Mixing(Augmentation):
    """Base of the augmentations that mix each sample with another one, its partner, and both their labels.

    A partner is one of the rows that the source serves, so that no held-out sample is ever trained on, and looks as it does
    itself in the same view. Mixing comes last: it is given inputs that are augmented and normalized already.
    """

    def partners(self, index: Tensor, rows: Tensor, seed: int, view: int) -> Tensor:
        """The partner of each sample, int64 `(B,)`: any of `rows` `(n,)`, equally likely (itself too)."""
        drawn = integers(index, 0, len(rows) - 1, seed, view, type(self).__name__, "partner")
        return rows.index_select(0, drawn)

    def mix(
        self, inputs: Tensor, others: Tensor, index: Tensor, seed: int, view: int
    ) -> tuple[Tensor, Tensor]:
        """Mix `inputs` with `others`, both float `(B, C, H, W)`.

        Returns:
            The mixed inputs, and the share `(B,)` that is each sample's own, a function of `(seed, view, index)`.
        """
        raise NotImplementedError


class Jitter(Augmentation):
    """Shift each image by a whole number of pixels in both directions, filling with black (Hinton et al. 2015, section 3).

    Args:
        pixels: the largest shift; every shift in [-pixels, pixels]^2 is equally likely.
    """

    def __init__(self, pixels: int = 2) -> None:
        if pixels < 1:
            raise UserError(
                f"Jitter: pixels must be at least 1, got {pixels}; leave the augmentation out for none"
            )
        self.pixels = pixels

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        window = integers(index, 0, (2 * self.pixels + 1) ** 2 - 1, seed, view, "jitter")
        return padded_windows(images, window, self.pixels)


def padded_windows(images: Tensor, window: Tensor, padding: int) -> Tensor:
    """Of each image, padded with black on all sides, a window of its own size.

    Args:
        images: uint8 `(B, C, H, W)`.
        window: int64 `(B,)`, top * (2 * padding + 1) + left, both in [0, 2 * padding].
        padding: in pixels.
    """
    b, c, h, w = images.shape
    if b == 0:
        return images
    start, inside = _windows(padding, h, w, images.device)
    size, margin = c * h * w, padding * (w + 1)
    around = images.new_empty(b * size + 2 * margin)
    around[margin : margin + b * size] = images.reshape(-1)
    # A window is a run of the image's own length that starts earlier or later, less the pixels that come from another row,
    # channel or image: copying runs is ten times as fast as gathering pixels.
    runs = around.as_strided((around.numel() - size + 1, size), (1, 1))
    first = start.index_select(0, window) + torch.arange(
        margin, margin + b * size, size, device=images.device
    )
    return (
        runs.index_select(0, first)
        .view_as(images)
        .bitwise_and_(inside.index_select(0, window)[:, None])
    )


@lru_cache(maxsize=8)
def _windows(padding: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each window starts, in pixels after its image's first, and 255 for each of its pixels that is the image's own."""
    shift = torch.arange(-padding, padding + 1, device=device)
    rows, columns = (
        ((at := shift[:, None] + torch.arange(n, device=device)) >= 0) & (at < n)
        for n in (height, width)
    )
    own = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
    return (shift[:, None] * width + shift).flatten(), own.to(torch.uint8) * 255
