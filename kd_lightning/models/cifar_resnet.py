"""Residual networks for 32x32 images, as in the CIFAR-100 benchmark.

He et al. 2016 (arXiv 1512.03385), section 4.2; benchmark: Tian et al. 2020 (arXiv 1910.10699).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes, global_pool, he_normal


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution adapts the shortcut to a new shape."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            # The paper's option B; its other option for CIFAR pads the channels with zeros.
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        # A module of its own, so that its input, the sum, can be tapped.
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, channels, H', W')` of `(B, channels_in, H, W)`."""
        y = self.conv1(x)
        y = F.relu(self.bn1(y))
        y = self.conv2(y)
        y = self.bn2(y)
        # ReLU follows the sum, so that a block can also lower its input.
        total = y + self.shortcut(x)
        out: Tensor = self.relu(total)
        return out


class CIFARResNet(nn.Module):
    """A residual network of three stages for small images.

    The depth is 6 n + 2: 8, 14, 20, 32, 44, 56, 110, ...

    Args:
        depth: number of weighted layers.
        width: factor of the stages' channels; `resnet8x4` and `resnet32x4` have width 4.
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap: `stage1`, `stage2`,
        `stage3` and `pool`. The sums before the last ReLU of a stage are at `stage1.-1.relu:input`,
        the batch norm that adds to them is `stage1.-1.bn2`.

    Raises:
        UserError: if the depth is impossible, a shape is missing or the inputs are not images.
    """

    def __init__(
        self,
        depth: int,
        width: int = 1,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes(
            "CIFARResNet", input_shape, num_classes
        )
        if depth < 8 or (depth - 2) % 6:
            raise UserError(
                f"CIFARResNet: depth must be 6 n + 2 (8, 14, 20, 32, ...), got {depth}"
            )
        # The benchmark's wide networks (8x4, 32x4) have 32 channels in the first layer, not 64.
        first = 16 if width == 1 else 32
        channels1 = 16 * width
        channels2 = 32 * width
        channels3 = 64 * width
        self.conv = nn.Conv2d(channels_in, first, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        # Two layers are the first convolution and the classifier; a block has two convolutions.
        blocks = (depth - 2) // 6
        self.stage1 = self._stage(first, channels1, blocks, 1)
        self.stage2 = self._stage(channels1, channels2, blocks, 2)
        self.stage3 = self._stage(channels2, channels3, blocks, 2)
        self.pool = global_pool()
        self.head = nn.Linear(channels3, classes)
        he_normal(self)

    @staticmethod
    def _stage(
        channels_in: int,
        channels: int,
        blocks: int,
        stride: int,
    ) -> nn.Sequential:
        # The later blocks are created first: the order decides which initial weights a seed gives.
        rest = [_Block(channels, channels, 1) for _ in range(blocks - 1)]
        first = _Block(channels_in, channels, stride)
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        y = self.conv(x)
        y = F.relu(self.bn(y))
        y = self.stage1(y)
        y = self.stage2(y)
        y = self.stage3(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
