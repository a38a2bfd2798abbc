"""MobileNetV2 for 32x32 images: Sandler et al. 2018 (arXiv 1801.04381), in the form of the CIFAR-100 benchmark."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from kd_lightning.errors import UserError
from kd_lightning.models.base import global_pool, he_normal, known_shapes

GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""The paper's table 2: expansion, channels, blocks and stride of the first; the second group has stride 1 here, not 2."""


class _InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 depthwise, 1x1 to fewer without ReLU; added to the input where shapes agree."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels_in
        self.layers = nn.Sequential(
            Conv2dNormActivation(channels_in, hidden, 1, inplace=False),
            Conv2dNormActivation(hidden, hidden, 3, stride, groups=hidden, inplace=False),
            Conv2dNormActivation(hidden, channels, 1, activation_layer=None),
        )
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class CIFARMobileNetV2(nn.Module):
    """MobileNetV2 for small images; the benchmark's is half as wide as the paper's.

    It differs from torchvision's in what the benchmark changed: strides for 32x32 images, ReLU in place of ReLU6, an
    expanding convolution in the first block too, and channels that are not rounded to multiples of 8.

    Args:
        width: multiplies the channels of all layers but the last, which has 1,280 (more where width is above 1).
        input_shape: `[channels, height, width]`, filled in from the data under `kd`.
        num_classes: filled in from the data under `kd`.

    Shapes:
        input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers for tapping, of a 32x32 image at half width: `stem`
        `(16, 16, 16)`, `stage1` `(12, 16, 16)`, `stage2` `(16, 8, 8)`, `stage3` `(48, 4, 4)`, `stage4` `(160, 2, 2)`, `last`
        `(1280, 2, 2)`, `pool` `(1280)` and `head`. The stages end without ReLU (the paper's linear bottlenecks), and so the
        benchmark taps them; `stem` and `last` are after theirs.

    Raises:
        UserError: for a width that leaves a layer without channels, or where a shape is missing.
    """

    def __init__(
        self,
        width: float = 0.5,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels_in, classes = known_shapes("CIFARMobileNetV2", input_shape, num_classes)
        if not 1 / 16 <= width < float("inf"):
            raise UserError(
                f"CIFARMobileNetV2: width must be at least 1/16, so that no layer is without channels, got {width}"
            )
        channels = int(32 * width)
        self.stem = Conv2dNormActivation(channels_in, channels, 3, 2, inplace=False)
        groups = []
        for expansion, wide, blocks, first_stride in GROUPS:
            strides = [first_stride] + [1] * (blocks - 1)
            inputs = [channels] + [int(wide * width)] * (blocks - 1)
            channels = int(wide * width)
            groups.append(
                [
                    _InvertedResidual(c, channels, s, expansion)
                    for c, s in zip(inputs, strides, strict=True)
                ]
            )
        self.stage1 = nn.Sequential(*groups[0], *groups[1])
        self.stage2 = nn.Sequential(*groups[2])
        self.stage3 = nn.Sequential(*groups[3], *groups[4])
        self.stage4 = nn.Sequential(*groups[5], *groups[6])
        last = int(1280 * max(1.0, width))
        self.last = Conv2dNormActivation(channels, last, 1, inplace=False)
        self.pool = global_pool()
        self.head = nn.Linear(last, classes)
        he_normal(self)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        logits: Tensor = self.head(self.pool(self.last(y)))
        return logits
