"""Augmentation of whole batches, on the batch's device, as a function of (seed, view, index).

Libraries draw their parameters from a global generator; here they must come from outside, or no cache could replay them.
"""

from __future__ import annotations

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

    def mix(self, inputs: Tensor, others: Tensor, index: Tensor, seed: int, view: int) -> tuple[Tensor, Tensor]:
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
            raise UserError(f"Jitter: pixels must be at least 1, got {pixels}; leave the augmentation out for none")
        self.pixels = pixels

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        side = 2 * self.pixels + 1
        shift = integers(index, 0, side * side - 1, seed, view, "jitter")
        return padded_windows(images, shift // side, shift % side, self.pixels)


def padded_windows(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Of each image, padded with black on all sides, the window of its own size that starts at (`top`, `left`).

    Args:
        images: uint8 `(B, C, H, W)`.
        top, left: int64 `(B,)`, in [0, 2 * padding].
        padding: in pixels.
    """
    p, (b, c, h, w) = padding, images.shape
    if b == 0:
        return images
    height, row = h + 2 * p + 1, w + 2 * p
    padded = images.new_zeros(b * c, height, row)
    padded[:, p : p + h, p : p + w] = images.reshape(b * c, h, w)
    # A window is a run of h * row pixels of the padded image, whose last 2 * p columns are cut off again: copying runs is
    # ten times as fast as gathering pixels. The row below keeps the last window's run within its own image.
    flat = padded.view(-1)
    runs = flat.as_strided((flat.numel() - h * row + 1, h * row), (1, 1))
    start = (top * row + left).repeat_interleave(c)
    start += torch.arange(b * c, device=images.device) * (height * row)
    return runs.index_select(0, start).view(b, c, h, row)[..., :w]
