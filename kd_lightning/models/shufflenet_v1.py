"""ShuffleNet (Zhang et al. 2018, arXiv 1707.01083) for 32x32 images.

The network is that of the CIFAR-100 benchmark (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.models.base import check_image_shapes, global_pool

GROUPS = 3
"""Groups of the 1x1 convolutions."""
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels and blocks of each stage, for three groups (table 1 of the paper)."""


class _Block(nn.Module):
    """Grouped 1x1 convolution, channel shuffle, 3x3 depthwise, grouped 1x1 convolution.

    With stride 1, the input is added. With stride 2, the average-pooled input is appended, so the
    convolutions compute only the remaining channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        groups_in: int,
    ) -> None:
        super().__init__()
        # Channels that the convolutions compute; the shortcut provides the others.
        computed = channels if stride == 1 else channels - channels_in
        # The bottleneck has a quarter of the output channels (section 3.2 of the paper).
        hidden = computed // 4
        self.expand = Conv2dNormActivation(
            channels_in, hidden, 1, groups=groups_in, inplace=False
        )
        self.shuffle = nn.ChannelShuffle(groups_in)
        self.depthwise = Conv2dNormActivation(
            hidden, hidden, 3, stride, groups=hidden, inplace=False
        )
        self.project = Conv2dNormActivation(
            hidden, computed, 1, groups=GROUPS, activation_layer=None
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.AvgPool2d(3, stride, 1)
        self.appends = stride != 1
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, channels, H', W')` of `(B, channels_in, H, W)`."""
        y = self.expand(x)
        # Without the shuffle, each group of `project` would see one group of `expand` only.
        y = self.shuffle(y)
        y = self.depthwise(y)
        y = self.project(y)
        shortcut = self.shortcut(x)
        joined = torch.cat([y, shortcut], 1) if self.appends else y + shortcut
        out: Tensor = self.relu(joined)
        return out


class CIFARShuffleNetV1(nn.Module):
    """ShuffleNet of three groups for small images.

    As in the benchmark, the first convolution is 1x1 with stride 1, no pooling follows it, the
    depthwise convolutions have a ReLU, and all layers have torch's default initialization.

    Args:
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, all after their ReLU,
        with the shapes for a 32x32 image: `stem` `(24, 32, 32)`, `stage1` `(240, 16, 16)`, `stage2`
        `(480, 8, 8)`, `stage3` `(960, 4, 4)`, `pool` `(960)`, `head`.

    Raises:
        UserError: if a shape is missing or the inputs are not images.
    """

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes(
            "CIFARShuffleNetV1", input_shape, num_classes
        )
        (channels1, blocks1), (channels2, blocks2), (channels3, blocks3) = STAGES
        self.stem = Conv2dNormActivation(channels_in, 24, 1, inplace=False)
        # The 24 channels of the stem are too few for groups (section 3.2 of the paper).
        self.stage1 = self._stage(24, channels1, blocks1, groups_in=1)
        self.stage2 = self._stage(channels1, channels2, blocks2)
        self.stage3 = self._stage(channels2, channels3, blocks3)
        self.pool = global_pool()
        self.head = nn.Linear(channels3, classes)

    @staticmethod
    def _stage(
        channels_in: int,
        channels: int,
        blocks: int,
        groups_in: int = GROUPS,
    ) -> nn.Sequential:
        # The later blocks are created first: the order decides which initial weights a seed gives.
        rest = [_Block(channels, channels, 1, GROUPS) for _ in range(blocks - 1)]
        first = _Block(channels_in, channels, 2, groups_in)
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        y = self.stem(x)
        y = self.stage1(y)
        y = self.stage2(y)
        y = self.stage3(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
