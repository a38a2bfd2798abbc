"""Building blocks that the convolutional networks for small images share."""

from __future__ import annotations

from torch import nn

from kd_lightning.errors import UserError


def check_image_shapes(
    owner: str,
    input_shape: list[int] | None,
    num_classes: int | None,
) -> tuple[int, int]:
    """Check that a network for images knows the shapes of its data.

    Args:
        owner: name of the network, for messages.
        input_shape: `[channels, height, width]`.
        num_classes: number of classes.

    Returns:
        The number of input channels and the number of classes.

    Raises:
        UserError: if an argument is missing or the inputs are not images.
    """
    if input_shape is None or num_classes is None:
        raise UserError(
            f"{owner}: input_shape or num_classes is missing; "
            "kd takes both from the data; in Python, pass them"
        )
    if len(input_shape) != 3:
        raise UserError(
            f"{owner} needs images, [channels, height, width]; "
            f"the data has inputs of shape {input_shape}"
        )
    return input_shape[0], num_classes


def global_pool() -> nn.Sequential:
    """The mean over all pixels, `(B, C, H, W)` to `(B, C)`."""
    # Adaptive pooling reads images of any size, and leaves two dimensions of length one.
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def he_normal(network: nn.Module) -> None:
    """Initialize all convolutions as He et al. 2015 (arXiv 1502.01852) do; biases become zero.

    The variance is 2 / `fan_out`, which preserves the magnitude of gradients.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
