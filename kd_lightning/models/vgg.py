"""VGG for 32x32 images: Simonyan and Zisserman 2015 (arXiv 1409.1556), in the form of the CIFAR-100 benchmark."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.errors import UserError
from kd_lightning.models.base import global_pool, he_normal, known_shapes

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""How many of each of the five blocks, by depth."""


def _block(channels_in: int, channels: int, convolutions: int) -> list[nn.Module]:
    widths = [channels_in] + [channels] * convolutions
    return [Conv2dNormActivation(a, b, bias=True, inplace=False) for a, b in pairwise(widths)]


class CIFARVGG(nn.Module):
    """VGG for small images: five blocks of 3x3 convolutions, each with batch norm and ReLU, and a linear layer.

    Args:
        depth: 8, 11, 13, 16 or 19; 8 is the benchmark's own, with one convolution a block.
        input_shape: `[channels, height, width]`, filled in from the data under `kd`.
        num_classes: filled in from the data under `kd`.

    Shapes:
        input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers for tapping, all after their ReLU, of a 32x32 image:
        `stem` `(64, 32, 32)`, `stage1` `(128, 16, 16)`, `stage2` `(256, 8, 8)`, `stage3` `(512, 4, 4)`, `stage4`
        `(512, 4, 4)`, `pool` `(512)` and `head`. A stage starts with max pooling, save the last.

    Raises:
        UserError: for another depth, or where a shape is missing.
    """

    def __init__(
        self, depth: int, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = known_shapes("CIFARVGG", input_shape, num_classes)
        if depth not in CONVOLUTIONS:
            raise UserError(
                f"CIFARVGG: depth must be one of {', '.join(map(str, CONVOLUTIONS))}, got {depth}"
            )
        counts = CONVOLUTIONS[depth]
        self.stem = nn.Sequential(*_block(channels_in, 64, counts[0]))
        self.stage1 = nn.Sequential(nn.MaxPool2d(2), *_block(64, 128, counts[1]))
        self.stage2 = nn.Sequential(nn.MaxPool2d(2), *_block(128, 256, counts[2]))
        self.stage3 = nn.Sequential(nn.MaxPool2d(2), *_block(256, 512, counts[3]))
        self.stage4 = nn.Sequential(*_block(512, 512, counts[4]))
        self.pool = global_pool()
        self.head = nn.Linear(512, classes)
        he_normal(self)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        logits: Tensor = self.head(self.pool(y))
        return logits
