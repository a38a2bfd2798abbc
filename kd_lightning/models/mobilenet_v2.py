"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) for 32x32 images.

The network is that of the CIFAR-100 benchmark (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes, global_pool, he_normal


class _Group(NamedTuple):
    """Consecutive blocks with the same number of output channels; a row of the paper's table 2."""

    expansion: int
    channels: int
    blocks: int
    stride: int  # of the first block; the others have stride 1


GROUPS = (
    _Group(expansion=1, channels=16, blocks=1, stride=1),
    _Group(expansion=6, channels=24, blocks=2, stride=1),  # stride 2 in the paper
    _Group(expansion=6, channels=32, blocks=3, stride=2),
    _Group(expansion=6, channels=64, blocks=4, stride=2),
    _Group(expansion=6, channels=96, blocks=3, stride=1),
    _Group(expansion=6, channels=160, blocks=3, stride=2),
    _Group(expansion=6, channels=320, blocks=1, stride=1),
)
"""The paper's table 2; the second group has stride 1, because the images are small."""


class _InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 depthwise, 1x1 to fewer channels without ReLU.

    The input is added if it has the shape of the output.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        hidden = expansion * channels_in
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels_in, hidden, 1, inplace=False),
            Conv2dNormActivation(
                hidden, hidden, 3, stride, groups=hidden, inplace=False
            ),
            Conv2dNormActivation(hidden, channels, 1, activation_layer=None),
        )
        # The shortcut has no convolution of its own, so it needs equal shapes.
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, channels, H', W')` of `(B, channels_in, H, W)`."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def _blocks(channels_in: int, channels: int, group: _Group) -> list[_InvertedResidual]:
    """The blocks of a group."""
    first = _InvertedResidual(channels_in, channels, group.stride, group.expansion)
    blocks = [first]
    for _ in range(group.blocks - 1):
        blocks.append(_InvertedResidual(channels, channels, 1, group.expansion))
    return blocks


class CIFARMobileNetV2(nn.Module):
    """MobileNetV2 for small images; the benchmark uses half of the paper's width.

    It differs from torchvision's network as the benchmark's does: strides for 32x32 images, ReLU
    instead of ReLU6, an expanding convolution in the first block too, and numbers of channels that
    are not rounded to multiples of 8.

    Args:
        width: factor of the channels of all layers except the last one, which has 1,280 channels
            (more if the width is above 1).
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, with the shapes for a
        32x32 image at half width: `stem` `(16, 16, 16)`, `stage1` `(12, 16, 16)`, `stage2`
        `(16, 8, 8)`, `stage3` `(48, 4, 4)`, `stage4` `(160, 2, 2)`, `last` `(1280, 2, 2)`, `pool`
        `(1280)`, `head`. The stages end without ReLU (the paper's linear bottlenecks), and the
        benchmark taps them there; `stem` and `last` are tapped after their ReLU.

    Raises:
        UserError: if the width leaves a layer without channels, a shape is missing or the inputs
            are not images.
    """

    def __init__(
        self,
        width: float = 0.5,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes(
            "CIFARMobileNetV2", input_shape, num_classes
        )
        if not 1 / 16 <= width < float("inf"):
            raise UserError(
                "CIFARMobileNetV2: width must be at least 1/16, or a layer would have no channels; "
                f"got {width}"
            )
        channels = int(32 * width)
        self.stem = Conv2dNormActivation(channels_in, channels, 3, 2, inplace=False)
        groups = []
        for group in GROUPS:
            wide = int(group.channels * width)
            groups.append(_blocks(channels, wide, group))
            channels = wide
        # Each stage after the first starts with a group of stride 2, which halves the resolution.
        self.stage1 = nn.Sequential(*groups[0], *groups[1])
        self.stage2 = nn.Sequential(*groups[2])
        self.stage3 = nn.Sequential(*groups[3], *groups[4])
        self.stage4 = nn.Sequential(*groups[5], *groups[6])
        # The paper narrows all layers but the last one (section 5.1): it feeds the classifier.
        last = int(1280 * max(1.0, width))
        self.last = Conv2dNormActivation(channels, last, 1, inplace=False)
        self.pool = global_pool()
        self.head = nn.Linear(last, classes)
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
        y = self.last(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
