"""Color augmentations, with the values of torchvision's v2 functionals on uint8 images.

Between the steps, images are float32 tensors of whole numbers from 0 to 255. No step uses a fused
sum of products, because some kernels round it once and others twice: the value of a pixel must not
depend on its place in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation
from kd_lightning.errors import UserError
from kd_lightning.randomness import uniform


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue of each image, in this order.

    Every image draws its own factors. Saturation and hue only change images of three channels.

    Args:
        brightness: the factor is uniform in [max(0, 1 - value), 1 + value]; 0: unchanged.
        contrast: see brightness.
        saturation: see brightness.
        hue: the shift is uniform in [-hue, hue], at most 0.5, where 1 is a full turn of the color
            wheel; 0: unchanged.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise UserError(
                    f"ColorJitter: {name} must be a finite number of at least 0, got {value}"
                )
        # Half a turn in either direction reaches every hue.
        if hue > 0.5:
            raise UserError(
                f"ColorJitter: hue must be at most 0.5, half a turn of the color wheel, got {hue}"
            )
        if not (brightness or contrast or saturation or hue):
            raise UserError(
                "ColorJitter: nothing to change, because brightness, contrast, saturation and hue "
                "are all 0; set one of them, or remove the augmentation"
            )

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        # All four steps in float32, as torchvision's functionals; each one rounds to
        # whole numbers.
        x = images.float()
        if self.brightness:
            factor = _factor("brightness", self.brightness, index, seed, view)
            x = adjust_brightness(x, factor)
        if self.contrast:
            factor = _factor("contrast", self.contrast, index, seed, view)
            x = adjust_contrast(x, factor)
        if self.saturation:
            factor = _factor("saturation", self.saturation, index, seed, view)
            x = adjust_saturation(x, factor)
        if self.hue:
            shift = _draw("hue", -self.hue, self.hue, index, seed, view)
            x = adjust_hue(x, shift)
        return x.to(torch.uint8)


def _factor(name: str, strength: float, index: Tensor, seed: int, view: int) -> Tensor:
    """A factor per image, `(B, 1, 1, 1)`, uniform in [max(0, 1 - strength), 1 + strength]."""
    low = max(0.0, 1 - strength)
    high = 1 + strength
    return _draw(name, low, high, index, seed, view)


def _draw(
    name: str,
    low: float,
    high: float,
    index: Tensor,
    seed: int,
    view: int,
) -> Tensor:
    """A number per image, `(B, 1, 1, 1)`, uniform in [low, high]."""
    # The British spelling is part of the random stream: existing caches replay these draws.
    share = uniform(index, seed, view, "colour", name)
    values = low + (high - low) * share
    return values[:, None, None, None]


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the brightness of each image by a factor.

    Args:
        x: float32 `(B, C, H, W)`, whole numbers from 0 to 255.
        factor: float32 `(B, 1, 1, 1)`.

    Returns:
        float32 `(B, C, H, W)`, whole numbers from 0 to 255.
    """
    return (x * factor).clamp_(0, 255).floor_()


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel to the mean gray of its image.

    Args:
        x: float32 `(B, C, H, W)`, whole numbers from 0 to 255.
        factor: float32 `(B, 1, 1, 1)`.

    Returns:
        float32 `(B, C, H, W)`, whole numbers from 0 to 255.
    """
    # In float64, the sum of the pixels is exact in any order.
    # The gray of the whole image, so that a bright image stays bright.
    mean = _gray(x).double().mean((1, 2, 3), keepdim=True)
    return _blend(x, mean.float(), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel to its own gray.

    Args:
        x: float32 `(B, C, H, W)`, whole numbers from 0 to 255.
        factor: float32 `(B, 1, 1, 1)`.

    Returns:
        float32 `(B, C, H, W)`, whole numbers from 0 to 255; `x` itself if C is not 3.
    """
    if x.shape[1] != 3:
        return x
    return _blend(x, _gray(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each pixel, keeping saturation and value in the sense of HSV.

    Args:
        x: float32 `(B, C, H, W)`, whole numbers from 0 to 255.
        shift: float32 `(B, 1, 1, 1)`; 1 is a full turn of the color wheel.

    Returns:
        float32 `(B, C, H, W)`, whole numbers from 0 to 255; `x` itself if C is not 3.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = (x / 255).unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    spread = high - low
    sixths = _sixths_from_red(red, green, blue, high, spread)
    hue = sixths.div_(6).add_(shift[:, 0])

    # Over a turn, each channel is a trapezoid between `low` and `high`; the three are a third of a
    # turn apart. One added turn keeps the phases positive.
    offsets = torch.tensor([11 / 6, 9 / 6, 7 / 6], device=x.device)
    phase = (hue[:, None] + offsets[:, None, None]).frac_().mul_(6)
    dip = torch.minimum(phase, 4 - phase).clamp_(0, 1).mul_(spread[:, None])
    return dip.neg_().add_(high[:, None]).mul_(255.999).floor_()


def _sixths_from_red(
    red: Tensor,
    green: Tensor,
    blue: Tensor,
    high: Tensor,
    spread: Tensor,
) -> Tensor:
    """The hue of pixels as a number of sixths of a turn from red, `(B, H, W)`.

    Args:
        red, green, blue: channels, `(B, H, W)` each.
        high: the largest of them.
        spread: the largest minus the smallest.
    """
    # Gray pixels have no hue; any value serves.
    safe = torch.where(spread > 0, spread, 1.0)
    from_red = (green - blue) / safe
    from_green = (blue - red) / safe + 2
    from_blue = (red - green) / safe + 4
    # The largest channel names the nearest primary color.
    sixths = torch.where(high == green, from_green, from_blue)
    return torch.where(high == red, from_red, sixths)


def _gray(x: Tensor) -> Tensor:
    """Luma by ITU-R BT.601.

    Args:
        x: float32 `(B, C, H, W)`, whole numbers from 0 to 255.

    Returns:
        float32 `(B, 1, H, W)`, whole numbers from 0 to 255; `x` itself if C is not 3.
    """
    if x.shape[1] != 3:
        return x
    # Multiples of 1/10000 are whole numbers below 2^24 here, so their sum is exact in any order.
    red, green, blue = x.unbind(1)
    weighted = (red * 2989).add_(green * 5870).add_(blue * 1140)
    return weighted.div_(10_000).floor_()[:, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`factor * x + (1 - factor) * other` in whole numbers from 0 to 255."""
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 255).floor_()
