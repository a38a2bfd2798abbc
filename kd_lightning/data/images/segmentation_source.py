"""Images with one label per pixel, normalized and augmented one batch at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kd_lightning.data.images.masks import VOID, labels_of_masks
from kd_lightning.data.images.source import ImageSource
from kd_lightning.data.source import Source
from kd_lightning.types import CLEAN, Batch


class SegmentationSource(Source):
    """Images whose masks move with them under every geometric augmentation.

    Args:
        images: serves the images.
        masks: uint8 `(N, H, W)`, of the whole source split; see MaskedImages.
    """

    def __init__(self, images: ImageSource, masks: Tensor) -> None:
        self.images = images
        self.masks = masks
        self.rows = images.rows
        self.split = images.split

    @property
    def target(self) -> Tensor:  # type: ignore[override]
        """The class of each pixel of the source split, int64 `(N, H, W)`; memory holds bytes."""
        return labels_of_masks(self.masks)

    @property
    def sample_bytes(self) -> int:
        """Zero: the fetch must not join several batches."""
        # Batches with void pixels cannot be cut, so that fetching several at once gains nothing.
        return 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of all images and masks."""
        return self.images.resident_bytes + self.masks.nbytes

    def to(self, device: torch.device) -> SegmentationSource:
        """A copy on another device."""
        return SegmentationSource(self.images.to(device), self.masks.to(device))

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Images `(B, C, H, W)`, and the class of each pixel `(B, H, W)`, of rows `(B,)`."""
        batch = self.images.batch(rows, view)
        masks = self._masks(batch.index, view)
        exists = masks != VOID
        # Without void pixels every pixel is a position, which costs no index.
        positions = None
        if not bool(exists.all()):
            positions = exists.flatten().nonzero().flatten()
        return replace(batch, target=labels_of_masks(masks), positions=positions)

    def _masks(self, index: Tensor, view: int) -> Tensor:
        """Masks of rows of the source split, moved as their images are: uint8 `(B, H, W)`."""
        masks = self.masks.index_select(0, index)[:, None]
        if view != CLEAN:
            for augment in self.images.augment:
                if augment.geometric:
                    # The draw is a function of (seed, view, index): the image's own.
                    masks = augment(masks, index, self.images.seed, view)
        return masks[:, 0]
