"""Augmentation of whole batches on their device, as a function of (seed, view, index).

Augmentations of common libraries draw their parameters from a global generator, so a cache of
teacher outputs could not replay them. Here the parameters are a function of named numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import integers


class Augmentation:
    """Base class of augmentations.

    Subclasses store every argument as a plain attribute, because `fingerprint` reads them.

    Attributes:
        geometric: whether it moves pixels without changing their values, and fills with 0. Called
            on a mask with the same (seed, view, index), it moves the mask as it moves the image.
        interpolates: whether it moves pixels and changes their values, so that it cannot move a
            mask.
    """

    geometric: ClassVar[bool] = False
    interpolates: ClassVar[bool] = False

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 `(B, C, H, W)`, pixel values in [0, 255].
            index: int64 `(B,)`, row of each image in its source split.
            seed: seed of the augmentation.
            view: number of the draw.

        Returns:
            uint8 `(B, C, H, W)`. Result `i` depends only on `images[i]` and (seed, view, index[i]).
        """
        raise NotImplementedError

    def keeps_label(self, view: int) -> bool:
        """Whether an image still shows its class in a view; otherwise it is served as unlabelled."""
        return True

    def fingerprint(self) -> dict[str, object]:
        """The class name and all arguments, which a cache of teacher outputs compares."""
        return {"name": type(self).__name__, **vars(self)}


class Mixing(Augmentation):
    """Base class of augmentations that mix each sample, and its label, with a partner.

    Partners are drawn from the rows that the source serves, so held-out samples are never mixed in.
    A partner is augmented as in its own place of the same view. Mixing comes last: its inputs are
    already augmented and normalized.
    """

    def partners(self, index: Tensor, rows: Tensor, seed: int, view: int) -> Tensor:
        """Draw the partner of each sample.

        Args:
            index: int64 `(B,)`, row of each sample in its source split.
            rows: int64 `(n,)`, the possible partners. All are equally likely, the sample included.
            seed: seed of the augmentation.
            view: number of the draw.

        Returns:
            int64 `(B,)`, row of each partner in the source split.
        """
        place = integers(
            index, 0, len(rows) - 1, seed, view, type(self).__name__, "partner"
        )
        return rows.index_select(0, place)

    def mix(
        self,
        inputs: Tensor,
        others: Tensor,
        index: Tensor,
        seed: int,
        view: int,
    ) -> tuple[Tensor, Tensor]:
        """Mix each sample with its partner.

        Args:
            inputs: float32 `(B, C, H, W)`, the samples.
            others: float32 `(B, C, H, W)`, their partners.
            index: int64 `(B,)`, row of each sample in its source split.
            seed: seed of the augmentation.
            view: number of the draw.

        Returns:
            The mixed inputs `(B, C, H, W)`, and the share `(B,)` of each sample in them, in [0, 1].
        """
        raise NotImplementedError


class Jitter(Augmentation):
    """Shift each image by whole pixels in both directions and fill with black.

    Source: Hinton et al. 2015, section 3.

    Args:
        pixels: largest shift; every shift in [-pixels, pixels]^2 is equally likely.
    """

    geometric: ClassVar[bool] = True

    def __init__(self, pixels: int = 2) -> None:
        if pixels < 1:
            raise UserError(
                f"Jitter: pixels must be at least 1, got {pixels}; "
                "remove the augmentation for no shift"
            )
        self.pixels = pixels

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        num_windows = (2 * self.pixels + 1) ** 2
        window = integers(index, 0, num_windows - 1, seed, view, "jitter")
        return padded_windows(images, window, self.pixels)


def padded_windows(images: Tensor, window: Tensor, padding: int) -> Tensor:
    """Pad each image with black on all sides, and cut out a window of the image's size.

    Args:
        images: uint8 `(B, C, H, W)`.
        window: int64 `(B,)`, `top * (2 * padding + 1) + left` with both in [0, 2 * padding].
        padding: width of the border in pixels.

    Returns:
        uint8 `(B, C, H, W)`.
    """
    batch, channels, height, width = images.shape
    if batch == 0:
        return images
    starts, masks = _windows(padding, height, width, images.device)
    size = channels * height * width
    margin = padding * (width + 1)
    padded = images.new_empty(batch * size + 2 * margin)
    padded[margin : margin + batch * size] = images.reshape(-1)

    # A window is a run of as many bytes as the image that starts earlier or later in memory, except
    # for pixels that belong to another row, channel or image, which the mask blackens. Copying runs
    # is ten times as fast as gathering pixels.
    num_runs = padded.numel() - size + 1
    runs = padded.as_strided((num_runs, size), (1, 1))
    stop = margin + batch * size
    image_starts = torch.arange(margin, stop, size, device=images.device)
    first = starts.index_select(0, window) + image_starts
    windows = runs.index_select(0, first).view_as(images)
    mask = masks.index_select(0, window)
    return windows.bitwise_and_(mask[:, None])


@lru_cache(maxsize=8)
def _windows(
    padding: int,
    height: int,
    width: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Offsets and masks of all `W = (2 * padding + 1)^2` windows.

    Returns:
        The start of each window relative to its image, int64 `(W,)` in pixels, and masks uint8
        `(W, height, width)`: 255 for the pixels that lie inside the image, else 0.
    """
    shift = torch.arange(-padding, padding + 1, device=device)
    row_inside = _inside(shift, height)
    column_inside = _inside(shift, width)
    # All pairs of a vertical and a horizontal shift.
    inside = row_inside[:, None, :, None] & column_inside[None, :, None, :]
    masks = inside.flatten(0, 1).to(torch.uint8) * 255
    starts = shift[:, None] * width + shift
    return starts.flatten(), masks


def _inside(shift: Tensor, length: int) -> Tensor:
    """Whether each place of a side, shifted by `shift` `(S,)`, lies inside; bool `(S, length)`."""
    place = shift[:, None] + torch.arange(length, device=shift.device)
    return (place >= 0) & (place < length)
