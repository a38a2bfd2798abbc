"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) for 32x32 images.

The network is that of the CIFAR-100 benchmark (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from kd_lightning.models.base import check_image_shapes, global_pool

STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels and blocks of each stage at width 1 (table 5 of the paper)."""


class CIFARShuffleNetV2(nn.Module):
    """ShuffleNetV2 of width 1 for small images.

    torchvision's blocks follow a 1x1 convolution with stride 1, without pooling.

    Args:
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, all after their ReLU,
        with the shapes for a 32x32 image: `stem` `(24, 32, 32)`, `stage1` `(116, 16, 16)`, `stage2`
        `(232, 8, 8)`, `stage3` `(464, 4, 4)`, `last` `(1024, 4, 4)`, `pool` `(1024)`, `head`.

    Raises:
        UserError: if a shape is missing or the inputs are not images.
    """

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes(
            "CIFARShuffleNetV2", input_shape, num_classes
        )
        (channels1, blocks1), (channels2, blocks2), (channels3, blocks3) = STAGES
        self.stem = Conv2dNormActivation(channels_in, 24, 1, inplace=False)
        self.stage1 = self._stage(24, channels1, blocks1)
        self.stage2 = self._stage(channels1, channels2, blocks2)
        self.stage3 = self._stage(channels2, channels3, blocks3)
        self.last = Conv2dNormActivation(channels3, 1024, 1, inplace=False)
        self.pool = global_pool()
        self.head = nn.Linear(1024, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
        # The later blocks are created first: the order decides which initial weights a seed gives.
        rest = [InvertedResidual(channels, channels, 1) for _ in range(blocks - 1)]
        # Each stage halves the resolution in its first block.
        first = InvertedResidual(channels_in, channels, 2)
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        y = self.stem(x)
        y = self.stage1(y)
        y = self.stage2(y)
        y = self.stage3(y)
        y = self.last(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
