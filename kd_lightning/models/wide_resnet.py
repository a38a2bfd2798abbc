"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes, global_pool, he_normal


class _Block(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, added to the shortcut.

    The shortcut is the input or, if the number of channels changes, a 1x1 convolution of the first
    ReLU's output.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sums `(B, channels, H', W')` of `(B, channels_in, H, W)`, before any ReLU."""
        y = self.bn1(x)
        active = self.relu1(y)
        y = self.conv1(active)
        y = self.bn2(y)
        y = self.relu2(y)
        y = self.conv2(y)
        # No ReLU after the sum: the path of the shortcuts stays linear from stem to head.
        shortcut = x if self.shortcut is None else self.shortcut(active)
        total: Tensor = y + shortcut
        return total


class WideResNet(nn.Module):
    """A wide residual network of three stages for small images.

    The depth is 6 n + 4: 10, 16, 22, 28, 40, ...

    Args:
        depth: number of convolutions along the network.
        width: factor of the stages' channels; `wrn_40_2` has depth 40 and width 2.
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`. Layers to tap, with the shapes for a
        32x32 image and width w: `stem` `(16, 32, 32)`, `stage1` `(16 w, 32, 32)`, `stage2`
        `(32 w, 16, 16)`, `stage3` `(64 w, 8, 8)`, `pool` `(64 w)`, `head`. Batch norm and ReLU come
        before each convolution, so the output of a stage is a sum that can be negative; the
        benchmark (Tian et al. 2020) taps these sums too. The values after the next ReLU are at
        `stage2.0.relu1`, `stage3.0.relu1` and `final.1`.

    Raises:
        UserError: if depth or width is impossible, a shape is missing or the inputs are not images.
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
            "WideResNet", input_shape, num_classes
        )
        if depth < 10 or (depth - 4) % 6:
            raise UserError(
                f"WideResNet: depth must be 6 n + 4 (10, 16, 22, 28, 40, ...), got {depth}"
            )
        if width < 1:
            raise UserError(f"WideResNet: width must be at least 1, got {width}")
        # Beside the blocks of two convolutions each, the paper counts the first convolution and the
        # three of the shortcuts.
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(channels_in, 16, 3, padding=1, bias=False)
        channels1 = 16 * width
        channels2 = 32 * width
        channels3 = 64 * width
        self.stage1 = self._stage(16, channels1, blocks, 1)
        self.stage2 = self._stage(channels1, channels2, blocks, 2)
        self.stage3 = self._stage(channels2, channels3, blocks, 2)
        # The last sum has not passed through a batch norm and ReLU yet.
        self.final = nn.Sequential(nn.BatchNorm2d(channels3), nn.ReLU())
        self.pool = global_pool()
        self.head = nn.Linear(channels3, classes)
        he_normal(self)
        nn.init.zeros_(self.head.bias)

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
        y = self.stem(x)
        y = self.stage1(y)
        y = self.stage2(y)
        y = self.stage3(y)
        y = self.final(y)
        pooled = self.pool(y)
        logits: Tensor = self.head(pooled)
        return logits
