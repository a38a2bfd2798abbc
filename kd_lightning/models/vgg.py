"""VGG (Simonyan and Zisserman 2015, arXiv 1409.1556) for 32x32 images.

The network is that of the CIFAR-100 benchmark (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes, global_pool, he_normal

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five blocks, by depth."""


def _block(channels_in: int, channels: int, convolutions: int) -> list[nn.Module]:
    """3x3 convolutions with bias, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        # The bias has no effect before batch norm, but the benchmark's checkpoints contain it.
        layer = Conv2dNormActivation(channels_in, channels, bias=True, inplace=False)
        layers.append(layer)
        channels_in = channels
    return layers


class CIFARVGG(nn.Module):
    """VGG for small images: five blocks of 3x3 convolutions with batch norm, and a linear layer.

    Args:
        depth: 8, 11, 13, 16 or 19; the benchmark adds 8, with one convolution per block.
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, all after their ReLU,
        with the shapes for a 32x32 image: `stem` `(64, 32, 32)`, `stage1` `(128, 16, 16)`, `stage2`
        `(256, 8, 8)`, `stage3` `(512, 4, 4)`, `stage4` `(512, 4, 4)`, `pool` `(512)`, `head`. Each
        stage except the last starts with max pooling.

    Raises:
        UserError: if the depth is unknown, a shape is missing or the inputs are not images.
    """

    def __init__(
        self,
        depth: int,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes("CIFARVGG", input_shape, num_classes)
        if depth not in CONVOLUTIONS:
            valid = ", ".join(map(str, CONVOLUTIONS))
            raise UserError(f"CIFARVGG: depth must be one of {valid}, got {depth}")
        counts = CONVOLUTIONS[depth]
        self.stem = nn.Sequential(*_block(channels_in, 64, counts[0]))
        self.stage1 = nn.Sequential(
            nn.MaxPool2d(2),
            *_block(64, 128, counts[1]),
        )
        self.stage2 = nn.Sequential(
            nn.MaxPool2d(2),
            *_block(128, 256, counts[2]),
        )
        self.stage3 = nn.Sequential(
            nn.MaxPool2d(2),
            *_block(256, 512, counts[3]),
        )
        # No pooling here: the benchmark keeps the last two blocks at the same resolution.
        self.stage4 = nn.Sequential(*_block(512, 512, counts[4]))
        self.pool = global_pool()
        self.head = nn.Linear(512, classes)
        he_normal(self)
        # The benchmark starts the classifier from small weights.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        y = self.stem(x)
        y = self.stage1(y)
        y = self.stage2(y)
        y = self.stage3(y)
        y = self.stage4(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
