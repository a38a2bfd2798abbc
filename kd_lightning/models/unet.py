"""A U-Net for images of any size: Ronneberger et al. 2015 (arXiv 1505.04597)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes, he_normal


class _DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU: `(B, C_in, H, W)` to `(B, C, H, W)`."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class _Up(nn.Module):
    """Enlarges a map to the size of an encoder's map, joins the two and convolves them."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.convs = _DoubleConv(channels_in + channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features `(B, channels, H, W)` of a map `(B, channels_in, h, w)` and a skip of H x W."""
        # To the exact size: pooling rounds odd heights and widths down.
        height_width = skip.shape[-2:]
        enlarged = F.interpolate(x, size=height_width, mode="nearest")
        joined = torch.cat([enlarged, skip], dim=1)
        features: Tensor = self.convs(joined)
        return features


class UNet(nn.Module):
    """An encoder that halves the map per level, and a decoder that enlarges it again.

    Skip connections join each level of the encoder to the decoder. Unlike the paper's, convolutions
    are padded, so that logits have the input's height and width, and use batch norm. Maps are
    enlarged by nearest neighbor.

    Args:
        width: channels of the first level; each level below has twice as many (the paper: 64).
        levels: number of levels (the paper: 5).
        input_shape: `[channels, height, width]`, filled in from the data under `kd`.
        num_classes: filled in from the data under `kd`.

    Shapes:
        input `(B, C, H, W)`, output logits `(B, num_classes, H, W)`. Layers with L levels:

        - `encoder.i`, i from 0 to L - 2 (roles `stage1`, `stage2`, ...):
          `(B, width * 2**i, H / 2**i, W / 2**i)`
        - `bottom` (role `bottom`): `(B, width * 2**(L - 1), H / 2**(L - 1), W / 2**(L - 1))`
        - `decoder.i`, i from 0 to L - 2: the encoder's shapes in reverse order. The last one (role
          `penultimate`) is `(B, width, H, W)`
        - `head` (role `head`): the logits

    Raises:
        UserError: if an argument is out of range, or if the images are too small for the levels.
    """

    def __init__(
        self,
        width: int = 32,
        levels: int = 4,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes("UNet", input_shape, num_classes)
        if width < 1 or levels < 2:
            raise UserError(
                f"UNet: width must be at least 1 and levels at least 2, got {width} and {levels}"
            )
        smallest_side = min(input_shape[1:]) if input_shape else 0
        if smallest_side < 2 ** (levels - 1):
            raise UserError(
                f"UNet: {levels} levels halve a side of {smallest_side} pixels too often; "
                "use fewer levels"
            )
        channels = [width * 2**level for level in range(levels)]
        # The way down: one block per level, each followed by pooling.
        self.encoder = nn.ModuleList()
        for level_channels in channels[:-1]:
            self.encoder.append(_DoubleConv(channels_in, level_channels))
            channels_in = level_channels
        self.bottom = _DoubleConv(channels_in, channels[-1])
        channels_in = channels[-1]
        # The way up: each block reads the map below it and the encoder's map of its own level.
        self.decoder = nn.ModuleList()
        for level_channels in reversed(channels[:-1]):
            self.decoder.append(_Up(channels_in, level_channels))
            channels_in = level_channels
        self.head = nn.Conv2d(width, classes, 1)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes, H, W)` of images `(B, C, H, W)`."""
        skips = []
        for level in self.encoder:
            skip = level(x)
            # The decoder takes the maps in reverse order, the deepest one first.
            skips.append(skip)
            x = F.max_pool2d(skip, kernel_size=2)
        x = self.bottom(x)
        for level in self.decoder:
            x = level(x, skips.pop())
        logits: Tensor = self.head(x)
        return logits
