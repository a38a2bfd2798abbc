"""ResNet-50 behind a first layer for 32x32 images: He et al. 2016 (arXiv 1512.03385), as in the CIFAR-100 benchmark."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import Conv2dNormActivation

from kd_lightning.models.base import global_pool, he_normal, known_shapes


class CIFARResNet50(nn.Module):
    """torchvision's ResNet-50 for small images: a 3x3 convolution with stride 1 in the place of its 7x7 and max pooling.

    Args:
        input_shape: `[channels, height, width]`, filled in from the data under `kd`.
        num_classes: filled in from the data under `kd`.

    Shapes:
        input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers for tapping, all after their ReLU, of a 32x32 image:
        `stem` `(64, 32, 32)`, `stage1` `(256, 32, 32)`, `stage2` `(512, 16, 16)`, `stage3` `(1024, 8, 8)`, `stage4`
        `(2048, 4, 4)`, `pool` `(2048)` and `head`.

    Raises:
        UserError: where a shape is missing.
    """

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = known_shapes("CIFARResNet50", input_shape, num_classes)
        body = resnet50(num_classes=classes)
        self.stem = Conv2dNormActivation(channels_in, 64, 3, inplace=False)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            body.layer1,
            body.layer2,
            body.layer3,
            body.layer4,
        )
        self.pool = global_pool()
        self.head = body.fc
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        logits: Tensor = self.head(self.pool(y))
        return logits
