"""Augmentations that draw a box per image: random resized crops, random erasing and CutMix."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.geometry import where
from kd_lightning.data.images.mixup import draw_beta
from kd_lightning.errors import UserError
from kd_lightning.randomness import integers, uniform

_RATIO_STEPS = 2**16


class Boxes(NamedTuple):
    """One box per image, in whole pixels; every tensor is int64 `(B,)`."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def masks(self, height: int, width: int) -> Tensor:
        """Whether each pixel lies in the box, bool `(B, 1, height, width)`."""
        rows = _covered(self.top, self.height, height)
        columns = _covered(self.left, self.width, width)
        return rows[:, None, :, None] & columns[:, None, None, :]


def _covered(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Whether each place of a side lies in the box, bool `(B, length)`."""
    place = torch.arange(length, device=start.device) - start[:, None]
    return (place >= 0) & (place < size[:, None])


def draw_boxes(
    images: Tensor,
    index: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *parts: int | str,
) -> Boxes:
    """Draw a box per image: its area, its shape, and then its place.

    A side that is longer than the image is shortened to it; torchvision draws anew instead.

    Args:
        images: `(B, C, H, W)`; only the shape is read.
        index: int64 `(B,)`, row of each image in its source split.
        scale: smallest and largest share of the image's area, drawn uniformly.
        ratio: smallest and largest width per height, drawn uniformly on a logarithmic scale.
        parts: see `kd_lightning.randomness`.
    """
    height, width = images.shape[-2:]
    low, high = scale
    # Double precision, in which every device rounds alike, keeps the draw the same everywhere.
    drawn = uniform(index, *parts, "area").double()
    share = drawn * (high - low) + low
    area = share * (height * width)
    # A table computed on the CPU: the exponentials of other devices differ in their last bits.
    smallest = math.log(ratio[0])
    largest = math.log(ratio[1])
    logs = torch.linspace(smallest, largest, _RATIO_STEPS, dtype=torch.float64)
    ratios = logs.exp().to(index.device)
    step = integers(index, 0, _RATIO_STEPS - 1, *parts, "ratio")
    drawn_ratio = ratios.index_select(0, step)
    # A ratio r of width per height and an area a give sqrt(a / r) by sqrt(a r).
    box_height = _whole_side(area / drawn_ratio, height)
    box_width = _whole_side(area * drawn_ratio, width)
    top = _place(height - box_height, uniform(index, *parts, "top"))
    left = _place(width - box_width, uniform(index, *parts, "left"))
    return Boxes(top, left, box_height, box_width)


def _whole_side(square: Tensor, longest: int) -> Tensor:
    """The root of a square, rounded, int64 `(B,)` from 1 to `longest`."""
    side = square.sqrt().round().long()
    return side.clamp(1, longest)


def _place(last: Tensor, share: Tensor) -> Tensor:
    """A whole number from 0 to `last`, int64 `(B,)`, for draws in [0, 1)."""
    return (share.double() * (last + 1)).long()


def _check_box(
    owner: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"{owner}: scale must be two ascending numbers in (0, 1], got {scale}"
        )
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise UserError(
            f"{owner}: ratio must be two ascending positive numbers, got {ratio}"
        )


class RandomResizedCrop(Augmentation):
    """Crop a random box and resize it to the image's size, bilinearly.

    Source: Szegedy et al. 2015, arXiv 1409.4842, section 6; with torchvision's default ranges.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width per height of the box.
    """

    interpolates: ClassVar[bool] = True

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        _check_box("RandomResizedCrop", scale, ratio)
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        boxes = draw_boxes(
            images, index, self.scale, self.ratio, seed, view, "random_resized_crop"
        )
        height, width = images.shape[-2:]
        # One side after the other: bilinear interpolation is separable.
        rows = _resampled(images.float(), boxes.top, boxes.height, height)
        columns = _resampled(rows.transpose(2, 3), boxes.left, boxes.width, width)
        resized = columns.transpose(2, 3).round().to(torch.uint8)
        # The transposition is a view, while later steps read memory in the order of pixels.
        return resized.contiguous()


def _resampled(x: Tensor, start: Tensor, size: Tensor, length: int) -> Tensor:
    """Stretch a part of dimension 2 to its whole length, linearly.

    No step uses a fused sum of products, so a value does not depend on its place in the batch.

    Args:
        x: float32 `(B, C, length, W)`.
        start, size: int64 `(B,)`, the part.
        length: of the dimension.
    """
    # Pixel i of the result has its center at (i + 1/2) * size / length of the part.
    pixel = torch.arange(length, device=x.device, dtype=torch.float64)
    center = pixel + 0.5
    place = center * size[:, None] / length - 0.5
    # Beyond the centers of the first and the last pixel there is nothing to interpolate.
    last_place = (size[:, None] - 1).double()
    place = torch.minimum(place.clamp(min=0), last_place)
    lower = place.floor()
    weight = (place - lower).float()[:, None, :, None]
    # The two neighbors of each place, int64 `(B, length)`; the last pixel is its own neighbor.
    first = start[:, None] + lower.long()
    last = (start + size - 1)[:, None]
    second = torch.minimum(first + 1, last)
    # `gather` needs an index for each element: a view repeats it over channels and columns.
    first_index = first[:, None, :, None].expand(x.shape)
    second_index = second[:, None, :, None].expand(x.shape)
    below = x.gather(2, first_index)
    above = x.gather(2, second_index)
    return (below * (1 - weight)).add_(above * weight)


class RandomErasing(Augmentation):
    """Paint a random rectangle over some of the images.

    Source: Zhong et al. 2020, arXiv 1708.04896.

    Args:
        probability: of each image to be painted on, in (0, 1].
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width per height of the rectangle.
        fill: value of the rectangle per channel, 0 to 255; `None`: black. The paper's best choice
            is random pixels; torchvision paints after normalization, which corresponds to the mean.
    """

    def __init__(
        self,
        probability: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        fill: list[int] | None = None,
    ) -> None:
        if not 0 < probability <= 1:
            raise UserError(
                f"RandomErasing: probability must be in (0, 1], got {probability}; remove the "
                "augmentation for no erasing"
            )
        _check_box("RandomErasing", scale, ratio)
        if fill is not None and not all(0 <= value <= 255 for value in fill):
            raise UserError(
                f"RandomErasing: fill must be values from 0 to 255, one per channel, got {fill}"
            )
        self.probability = probability
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        self.fill = fill

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        channels, height, width = images.shape[1:]
        if self.fill is not None and len(self.fill) != channels:
            raise UserError(
                f"RandomErasing: fill has {len(self.fill)} values, but the images have {channels} "
                "channels; give one value per channel"
            )
        boxes = draw_boxes(
            images, index, self.scale, self.ratio, seed, view, "random_erasing"
        )
        # A box is drawn for every image, so that no draw depends on another image.
        drawn = uniform(index, seed, view, "random_erasing")
        is_erased = drawn < self.probability
        masks = boxes.masks(height, width) & is_erased[:, None, None, None]
        black = [0] * channels
        fill = images.new_tensor(self.fill or black)
        return where(masks, fill[:, None, None], images)


class CutMix(Mixing):
    """Paste a box of another sample into each sample; labels count by the shares of the area.

    Each sample draws its own box and partner, while the authors' code draws one box and one
    permutation per batch.

    Source: Yun et al. 2019, arXiv 1905.04899.

    Args:
        alpha: the share of the sample's own area has the distribution Beta(alpha, alpha) (the
            paper: 1), before the box is cut off at the border of the image.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(
                f"CutMix: alpha must be a finite number greater than 0, got {alpha}"
            )
        self.alpha = alpha

    def mix(
        self,
        inputs: Tensor,
        others: Tensor,
        index: Tensor,
        seed: int,
        view: int,
    ) -> tuple[Tensor, Tensor]:
        """Paste boxes of `others` into `inputs`, both float32 `(B, C, H, W)`; see `Mixing.mix`."""
        height, width = inputs.shape[-2:]
        drawn = draw_beta(self.alpha, index, seed, view, "cutmix", "share")
        # Both sides shrink alike, so the box has the image's shape and 1 - share of its area.
        side = (1 - drawn.double()).sqrt()
        box_height = (side * height).long()
        box_width = (side * width).long()
        # The center is any pixel; the part of the box outside the image is cut off.
        # As in the paper: every pixel is a center with the same probability.
        row = integers(index, 0, height - 1, seed, view, "cutmix", "row")
        column = integers(index, 0, width - 1, seed, view, "cutmix", "column")
        top = row - box_height // 2
        left = column - box_width // 2
        boxes = Boxes(top, left, box_height, box_width)
        masks = boxes.masks(height, width)
        # The share counts pixels, because the cut changes the area.
        pasted = masks.flatten(1).sum(1).float()
        share = 1 - pasted / (height * width)
        return torch.where(masks, others, inputs), share
