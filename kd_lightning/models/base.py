"""What the convolutional networks for small images share."""

from __future__ import annotations

from torch import nn

from kd_lightning.errors import UserError


def known_shapes(
    owner: str, input_shape: list[int] | None, num_classes: int | None
) -> tuple[int, int]:
    """Channels of the input and number of classes; UserError where they are not given, or are not those of images."""
    if input_shape is None or num_classes is None:
        raise UserError(
            f"{owner}: input_shape and num_classes are needed; under kd they come from the data"
        )
    if len(input_shape) != 3:
        raise UserError(
            f"{owner} reads images, [channels, height, width]; the data has inputs of shape {input_shape}"
        )
    return input_shape[0], num_classes


def global_pool() -> nn.Sequential:
    """The mean over all places, `(B, C, H, W)` to `(B, C)`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def he_normal(network: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. 2015 do, for what flows back (`fan_out`); their biases become zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
