"""ResNet-50 (He et al. 2016, arXiv 1512.03385) for 32x32 images, as in the CIFAR-100 benchmark."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import Conv2dNormActivation

from kd_lightning.models.base import check_image_shapes, global_pool, he_normal


class CIFARResNet50(nn.Module):
    """torchvision's ResNet-50 with a first layer for small images.

    A 3x3 convolution with stride 1 replaces the 7x7 convolution and the max pooling.

    Args:
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, all after their ReLU,
        with the shapes for a 32x32 image: `stem` `(64, 32, 32)`, `stage1` `(256, 32, 32)`, `stage2`
        `(512, 16, 16)`, `stage3` `(1024, 8, 8)`, `stage4` `(2048, 4, 4)`, `pool` `(2048)`, `head`.

    Raises:
        UserError: if a shape is missing or the inputs are not images.
    """

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        channels_in, classes = check_image_shapes(
            "CIFARResNet50", input_shape, num_classes
        )
        # Only the residual stages and the classifier of this network are used.
        body = resnet50(num_classes=classes)
        # A hook on an in-place ReLU's input would see the values after the ReLU, so nothing is in
        # place.
        self.stem = Conv2dNormActivation(channels_in, 64, 3, inplace=False)
        self.stage1 = body.layer1
        self.stage2 = body.layer2
        self.stage3 = body.layer3
        self.stage4 = body.layer4
        self.pool = global_pool()
        self.head = body.fc
        he_normal(self)

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
