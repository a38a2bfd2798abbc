"""Images in memory as uint8, normalized and augmented one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.types import CLEAN, Batch


@dataclass
class Images:
    """The raw samples of one source split.

    Attributes:
        images: uint8 `(N, C, H, W)`.
        target: int64 `(N,)`.
    """

    images: Tensor
    target: Tensor


@dataclass
class ImageSource:
    """Some rows of a source split, normalized (and augmented, where the view asks for it) a batch at a time.

    Attributes:
        images: uint8 `(N, C, H, W)`, the whole source split; subsets share it.
        target: int64 `(N,)`, of the whole source split.
        rows: int64 `(n,)`, the rows of the source split that take part: position i of this source is `rows[i]`.
        split: the name of the source split.
        mean, std: `(C,)`, of pixel values in [0, 1].
        augment: applied in order, where the view is not `CLEAN`.
        seed: of the augmentation.
        channels: repeat a single channel this many times.
        mixing: mixes each sample with another of `rows`, where the view is not `CLEAN`.
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

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's inputs."""
        return 4 * self.channels * self.images[0, 0].numel()

    def to(self, device: torch.device) -> ImageSource:
        """The same source with its samples resident on `device`."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("images", "target", "rows", "mean", "std")
        }
        return replace(self, **moved)

    def batch(self, rows: Tensor, view: int) -> Batch:
        # index_select copies whole rows, ten times as fast here as indexing.
        index = self.rows.index_select(0, rows.to(self.rows.device))
        inputs, target = self._inputs(index, view), self.target.index_select(0, index)
        if self.mixing is None or view == CLEAN:
            return Batch(inputs, target, index, view, self.split)
        other = self.mixing.partners(index, self.rows, self.seed, view)
        inputs, share = self.mixing.mix(inputs, self._inputs(other, view), index, self.seed, view)
        partner = self.target.index_select(0, other)
        return Batch(inputs, target, index, view, self.split, partner=partner, share=share)

    def _inputs(self, index: Tensor, view: int) -> Tensor:
        """Rows of the source split, augmented and normalized."""
        images = self.images.index_select(0, index)
        if view != CLEAN:
            for augment in self.augment:
                images = augment(images, index, self.seed, view)
        inputs = (
            images.float().sub_(255 * self.mean[:, None, None]).div_(255 * self.std[:, None, None])
        )
        if self.channels > inputs.shape[1]:
            inputs = inputs.expand(-1, self.channels, -1, -1)
        return inputs
