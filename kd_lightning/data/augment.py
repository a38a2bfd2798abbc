"""Augmentation of whole batches, on the batch's device, as a function of (seed, view, index).

Libraries draw their parameters from a global generator; here they must come from outside, or no cache could replay them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        dy = integers(index, 0, 2 * p, seed, view, "jitter-y")
        dx = integers(index, 0, 2 * p, seed, view, "jitter-x")
        padded = F.pad(images, (p, p, p, p))
        sample, channel, row, column = padded.stride()
        # Every window of the padded images without copying one: (B, 2p+1, 2p+1, C, H, W).
        windows = padded.as_strided((b, 2 * p + 1, 2 * p + 1, c, h, w), (sample, row, column, channel, row, column))
        return windows[torch.arange(b, device=images.device), dy, dx]
