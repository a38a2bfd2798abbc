"""From pixels as they are stored to what a network reads: the same arithmetic in data and exports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def normalize_pixels(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    channels: int,
) -> Tensor:
    """Subtract the mean and divide by the standard deviation, per channel.

    Args:
        images: uint8 `(B, C, H, W)`.
        mean, std: `(C,)` or `(channels,)`, of pixel values in [0, 1].
        channels: a single channel is repeated this many times.

    Returns:
        float32 `(B, channels, H, W)`.
    """
    # Values for each of the channels that a gray image is repeated to.
    if len(mean) > images.shape[1] or len(std) > images.shape[1]:
        images = images.expand(-1, channels, -1, -1)
    # The statistics are those of pixel values in [0, 1]; the pixels are in [0, 255].
    inputs = images.float().sub_(255 * mean[:, None, None])
    inputs = inputs.div_(255 * std[:, None, None])
    # Gray images for a network that reads colors; `expand` does not copy.
    if channels > inputs.shape[1]:
        inputs = inputs.expand(-1, channels, -1, -1)
    return inputs


class PixelNormalization(nn.Module):
    """`normalize_pixels` as a layer, for networks that leave the framework.

    Args:
        mean, std: per channel, of pixel values in [0, 1].
        channels: that the network reads; a single channel is repeated this many times.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Normalize uint8 images `(B, C, H, W)` to float32 `(B, channels, H, W)`."""
        return normalize_pixels(images, self.mean, self.std, self.channels)
