"""ShuffleNet for 32x32 images: Zhang et al. 2018 (arXiv 1707.01083), in the form of the CIFAR-100 benchmark."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.models.base import global_pool, known_shapes

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and blocks of each stage, for three groups (the paper's table 1)."""


class _Block(nn.Module):
    """1x1 convolution by groups, shuffle, 3x3 depthwise, 1x1 by groups.

    With stride 1 the input is added, with stride 2 its average is appended: those blocks make fewer channels themselves.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, groups_in: int) -> None:
        super().__init__()
        made = channels if stride == 1 else channels - channels_in
        hidden = made // 4
        self.expand = Conv2dNormActivation(channels_in, hidden, 1, groups=groups_in, inplace=False)
        self.shuffle = nn.ChannelShuffle(groups_in)
        self.depthwise = Conv2dNormActivation(
            hidden, hidden, 3, stride, groups=hidden, inplace=False
        )
        self.project = Conv2dNormActivation(hidden, made, 1, groups=GROUPS, activation_layer=None)
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, 1)
        self.appends = stride != 1
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        made = self.project(self.depthwise(self.shuffle(self.expand(x))))
        kept = self.shortcut(x)
        out: Tensor = self.relu(torch.cat([made, kept], 1) if self.appends else made + kept)
        return out


class CIFARShuffleNetV1(nn.Module):
    """ShuffleNet of three groups for small images.

    As in the benchmark, the first convolution is 1x1 with stride 1 and no pooling follows it, the depthwise convolutions
    have a ReLU, and weights start as torch's layers do.

    Args:
        input_shape: `[channels, height, width]`, filled in from the data under `kd`.
        num_classes: filled in from the data under `kd`.

    Shapes:
        input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers for tapping, all after their ReLU, of a 32x32 image:
        `stem` `(24, 32, 32)`, `stage1` `(240, 16, 16)`, `stage2` `(480, 8, 8)`, `stage3` `(960, 4, 4)`, `pool` `(960)` and
        `head`.

    Raises:
        UserError: where a shape is missing.
    """

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = known_shapes("CIFARShuffleNetV1", input_shape, num_classes)
        self.stem = Conv2dNormActivation(channels_in, 24, 1, inplace=False)
        # Groups of the 24 channels of the stem would be too small: the very first convolution has none (section 3.2).
        self.stage1 = self._stage(24, *STAGES[0], groups_in=1)
        self.stage2 = self._stage(STAGES[0][0], *STAGES[1])
        self.stage3 = self._stage(STAGES[1][0], *STAGES[2])
        self.pool = global_pool()
        self.head = nn.Linear(STAGES[2][0], classes)

    @staticmethod
    def _stage(
        channels_in: int, channels: int, blocks: int, groups_in: int = GROUPS
    ) -> nn.Sequential:
        rest = [_Block(channels, channels, 1, GROUPS) for _ in range(blocks - 1)]
        return nn.Sequential(_Block(channels_in, channels, 2, groups_in), *rest)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage3(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.head(self.pool(y))
        return logits
