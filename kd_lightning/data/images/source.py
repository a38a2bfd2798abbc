"""Images in memory as uint8, normalized and augmented one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.normalization import normalize_pixels
from kd_lightning.data.source import Source
from kd_lightning.types import CLEAN, UNLABELLED, Batch


@dataclass
class Images:
    """The raw samples of one source split.

    Attributes:
        images: uint8 `(N, C, H, W)`.
        target: int64 `(N,)`; `(N, K)` of 0 and 1 for several labels per image. -100 marks a label
            that is not known.
    """

    images: Tensor
    target: Tensor


@dataclass
class ImageSource(Source):
    """Some rows of a source split, normalized (and augmented) one batch at a time.

    Attributes:
        images: uint8 `(N, C, H, W)`, the whole source split; subsets share it.
        target: int64 `(N,)`, of the whole source split.
        rows: int64 `(n,)`, the rows of the source split that take part.
        split: the name of the source split.
        mean, std: `(C,)` or `(channels,)`, of pixel values in [0, 1].
        augment: applied in this order to every view except `CLEAN`.
        seed: of the augmentation.
        channels: a single channel is repeated this many times.
        mixing: mixes each sample with another of `rows`, in every view except `CLEAN`.
    """

    images: Tensor
    target: Tensor
    rows: Tensor
    split: str
    mean: Tensor
    std: Tensor
    augment: list[Augmentation]
    seed: int
    channels: int
    mixing: Mixing | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample as float32."""
        return 4 * self.channels * self.images[0, 0].numel()

    @property
    def resident_bytes(self) -> int:
        """Bytes of the whole source split as it is stored."""
        return self.images.nbytes + self.target.nbytes + self.rows.nbytes

    def to(self, device: torch.device) -> ImageSource:
        """A copy on another device."""
        return replace(
            self,
            images=self.images.to(device),
            target=self.target.to(device),
            rows=self.rows.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Normalized images `(B, C, H, W)` of rows `(B,)`; augmented, except in the view `CLEAN`."""
        # index_select copies whole rows, ten times as fast here as indexing.
        index = self.rows.index_select(0, rows.to(self.rows.device))
        inputs = self._inputs(index, view)
        target = self._target(index, view)
        if self.mixing is None or view == CLEAN:
            return Batch(inputs, target, index, view, self.split)
        other = self.mixing.partners(index, self.rows, self.seed, view)
        others = self._inputs(other, view)
        inputs, share = self.mixing.mix(inputs, others, index, self.seed, view)
        partner = self._target(other, view)
        return Batch(
            inputs, target, index, view, self.split, partner=partner, share=share
        )

    def _target(self, index: Tensor, view: int) -> Tensor:
        """The targets of rows of the source split; unknown if the view does not show the class."""
        target = self.target.index_select(0, index)
        if view == CLEAN or all(each.keeps_label(view) for each in self.augment):
            return target
        return torch.full_like(target, UNLABELLED)

    def _inputs(self, index: Tensor, view: int) -> Tensor:
        """Rows of the source split, augmented and normalized: float32 `(B, channels, H, W)`."""
        images = self.images.index_select(0, index)
        if view != CLEAN:
            for augment in self.augment:
                images = augment(images, index, self.seed, view)
        return normalize_pixels(images, self.mean, self.std, self.channels)
