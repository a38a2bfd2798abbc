"""Changes of colour. Values follow torchvision's v2 functionals on uint8, whatever else is in the batch.

Between steps images are whole numbers from 0 to 255 in float32. No step takes a sum of products, which some kernels round
once and others twice: a pixel's value must not depend on where in a batch it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation
from kd_lightning.errors import UserError
from kd_lightning.randomness import uniform


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue of each image by factors of its own, in this order.

    Saturation and hue leave images alone that have other than three channels.

    Args:
        brightness, contrast, saturation: the factor is uniform in [max(0, 1 - value), 1 + value]; 0: left alone.
        hue: the shift is uniform in [-hue, hue], where 1 is the whole circle of colours; at most 0.5; 0: left alone.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        values = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        for name, value in values.items():
            if not 0 <= value < float("inf"):
                raise UserError(
                    f"ColorJitter: {name} must be a finite number of at least 0, got {value}"
                )
        if hue > 0.5:
            raise UserError(
                f"ColorJitter: hue must be at most 0.5, half the circle of colours, got {hue}"
            )
        if not any(values.values()):
            raise UserError(
                "ColorJitter: nothing to change: brightness, contrast, saturation and hue are all 0"
            )
        self.brightness, self.contrast, self.saturation, self.hue = (
            brightness,
            contrast,
            saturation,
            hue,
        )

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        def drawn(name: str, low: float, high: float) -> Tensor:
            return (low + (high - low) * uniform(index, seed, view, "colour", name))[
                :, None, None, None
            ]

        x = images.float()
        for name, adjust in (
            ("brightness", adjust_brightness),
            ("contrast", adjust_contrast),
            ("saturation", adjust_saturation),
        ):
            if value := getattr(self, name):
                x = adjust(x, drawn(name, max(0.0, 1 - value), 1 + value))
        if self.hue:
            x = adjust_hue(x, drawn("hue", -self.hue, self.hue))
        return x.to(torch.uint8)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Brighter by `factor` `(B, 1, 1, 1)`; `x` `(B, C, H, W)` whole numbers from 0 to 255, and so is the result."""
    return (x * factor).clamp_(0, 255).floor_()


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the image's mean grey."""
    mean = _grey(x).double().mean((1, 2, 3), keepdim=True).float()
    return _blend(x, mean, factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, each pixel's grey."""
    return _blend(x, _grey(x), factor) if x.shape[1] == 3 else x


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Around the circle of colours by `shift` `(B, 1, 1, 1)`, at the same saturation and value in the sense of HSV."""
    if x.shape[1] != 3:
        return x
    r, g, b = (x / 255).unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high - low
    safe = torch.where(spread > 0, spread, 1.0)
    sixth = torch.where(
        high == r, (g - b) / safe, torch.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    turned = sixth.div_(6).add_(shift[:, 0])
    # Around the circle each channel is a trapezium between `low` and `high`; the three are a third of a turn apart. A whole
    # turn more keeps the places positive.
    starts = torch.tensor([11 / 6, 9 / 6, 7 / 6], device=x.device)[:, None, None]
    place = (turned[:, None] + starts).frac_().mul_(6)
    dip = torch.minimum(place, 4 - place).clamp_(0, 1).mul_(spread[:, None])
    return dip.neg_().add_(high[:, None]).mul_(255.999).floor_()


def _grey(x: Tensor) -> Tensor:
    """Luma by ITU-R BT.601, in whole numbers `(B, 1, H, W)`; images of other than three channels as they are."""
    if x.shape[1] != 3:
        return x
    # Multiples of 1/10000 are whole numbers below 2^24 here, so that their sum is exact in any order.
    r, g, b = x.unbind(1)
    return (r * 2989).add_(g * 5870).add_(b * 1140).div_(10_000).floor_()[:, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 255).floor_()
