"""Reads image files that a user brings like the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.images.decoding import Pixels, decode_content
from kd_lightning.data.images.listing import SUFFIXES
from kd_lightning.data.images.pairs import decode_resized
from kd_lightning.data.new_samples import Content, InputReader, NewSample, read_bytes
from kd_lightning.errors import UserError
from kd_lightning.values import Values

Decode = Callable[[bytes, str], Pixels]


@dataclass(frozen=True)
class ImageReader(InputReader):
    """Decodes images to uint8 `(B, C, H, W)`.

    Attributes:
        channels: C, 1 for gray or 3 for colors.
        height, width: H and W, of the training images.
        size: resize the shorter side to this and crop the central square; `None`:
            unchanged.
        stretch: resize to `(height, width)` without cropping, as for segmentation.
    """

    channels: int
    height: int
    width: int
    size: int | None = None
    stretch: bool = False

    kind: ClassVar[str] = "images"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def samples(self, path: Path) -> Iterator[NewSample]:
        """The file itself."""
        yield read_bytes(path)

    def encode(self, contents: Sequence[Content]) -> Tensor:
        """Pixels, uint8 `(B, C, H, W)`.

        Args:
            contents: of B image files.

        Raises:
            UserError: if one is no image, or has another size.
        """
        images = [self._decoded(content) for content in contents]
        return torch.from_numpy(np.stack(images))

    def _decoded(self, content: Content) -> Pixels:
        if not isinstance(content, bytes):
            raise UserError("this network reads images; give an image file")
        if self.stretch:
            return decode_resized(content, "the file", (self.height, self.width))
        pixels = decode_content(content, "the file", self.size, self.channels == 1)
        height, width = pixels.shape[1:]
        if (height, width) != (self.height, self.width):
            raise UserError(
                f"the image is {width}x{height}, the network reads "
                f"{self.width}x{self.height}; "
                "resize it"
            )
        return pixels

    def describe(self) -> Values:
        """All attributes."""
        return {"kind": self.kind, **vars(self)}
