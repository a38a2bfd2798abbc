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
        p, (b, c, h, w) = self.pixels, images.shape
        if b == 0:
            return images
        side, row = 2 * p + 1, w + 2 * p
        shift = integers(index, 0, side * side - 1, seed, view, "jitter")
        padded = images.new_zeros(b * c, h + side, row)
        padded[:, p : p + h, p : p + w] = images.reshape(b * c, h, w)
        # A shifted image is a run of h * row pixels of the padded one, whose last 2 * p columns are cut off again: copying
        # runs is ten times as fast as gathering pixels.
        flat = padded.view(-1)
        runs = flat.as_strided((flat.numel() - h * row + 1, h * row), (1, 1))
        start = (shift // side * row + shift % side).repeat_interleave(c)
        start += torch.arange(b * c, device=images.device) * ((h + side) * row)
        return runs.index_select(0, start).view(b, c, h, row)[..., :w]
