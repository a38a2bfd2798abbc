"""A small convolutional generator of images, for data-free distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError


class ConvGenerator(nn.Module):
    """From noise to normalized images: a linear layer, then twice upsampling and convolution.

    The architecture of Chen et al. 2019 (arXiv 1904.01186) for small images, with another width.
    The last layer normalizes each channel over the batch, as the data is normalized.

    Args:
        latent: entries of a noise vector; `data.latent` of the datamodule.
        width: channels of the first feature map; the second has half of them.
        norm: normalize feature maps and images over the batch. Without it the images of a batch do
            not depend on each other, and several processes equal one.
        input_shape: `[channels, height, width]` of the images; `kd` takes it from the data.

    Shapes:
        Input `(B, latent)`, output `(B, channels, height, width)`.

    Raises:
        UserError: if a size is not positive, or the shape is missing or not that of images.
    """

    def __init__(
        self,
        latent: int = 100,
        width: int = 128,
        norm: bool = True,
        input_shape: list[int] | None = None,
    ) -> None:
        super().__init__()
        if latent < 1 or width < 2:
            raise UserError(
                f"ConvGenerator: latent must be at least 1 and width at least 2, got {latent} "
                f"and {width}"
            )
        if input_shape is None or len(input_shape) != 3:
            raise UserError(
                "ConvGenerator makes images and needs input_shape, [channels, height, width], which "
                f"kd takes from the data; got {input_shape}"
            )
        channels, height, image_width = input_shape
        self.width = width
        self.size = (height, image_width)
        self.first_size = (-(-height // 4), -(-image_width // 4))
        self.linear = nn.Linear(latent, width * self.first_size[0] * self.first_size[1])
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(width // 2) if norm else nn.Identity()
        self.conv3 = nn.Conv2d(width // 2, channels, 3, padding=1)
        self.norm4 = nn.BatchNorm2d(channels, affine=False) if norm else nn.Identity()

    def forward(self, noise: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of noise `(B, latent)`."""
        x = self.linear(noise).view(len(noise), self.width, *self.first_size)
        x = F.interpolate(self.norm1(x), scale_factor=2.0)
        x = F.leaky_relu(self.norm2(self.conv1(x)), 0.2)
        # Sizes that are no multiple of four end at the image's own size.
        x = F.interpolate(x, size=self.size)
        x = F.leaky_relu(self.norm3(self.conv2(x)), 0.2)
        images: Tensor = self.norm4(self.conv3(x).tanh())
        return images
