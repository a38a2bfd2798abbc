"""Images with one label per pixel, in files: which pairs of image and mask there are, and their pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kd_lightning.data.images.files import SUFFIXES, Tree
from kd_lightning.errors import UserError
from kd_lightning.types import UNLABELLED

VOID = 0
"""The byte of a void pixel. Augmentations fill with 0, so pixels from outside the image are void."""

WITHHELD = 255
"""The byte of a pixel whose class is withheld. Class k has the byte k + 1."""

MAX_CLASSES = WITHHELD - 1

PixelCode = int | list[int]
"""How a mask file marks a class: by a gray or palette value, or by a color `[red, green, blue]`."""

Pixels = NDArray[np.uint8]


@dataclass
class MaskedImages:
    """Decoded images and masks of one size.

    Attributes:
        images: uint8 `(N, 3, H, W)`.
        masks: uint8 `(N, H, W)`: `VOID`, `WITHHELD`, or the class plus one.
    """

    images: Tensor
    masks: Tensor


def labels_of_masks(masks: Tensor) -> Tensor:
    """The class of each pixel, int64; `UNLABELLED` for void and withheld pixels.

    Args:
        masks: uint8, any shape.
    """
    without_class = (masks == VOID) | (masks == WITHHELD)
    return (masks.long() - 1).masked_fill_(without_class, UNLABELLED)


class MaskCoding:
    """Translates the pixels of mask files to bytes.

    Args:
        classes: the code of each class by name; class 0 first. All are values, or all are colors.
        void: codes of pixels that belong to no class.

    Raises:
        UserError: for codes of two kinds, codes out of range, or a code with two meanings.
    """

    def __init__(self, classes: Mapping[str, PixelCode], void: Sequence[PixelCode]) -> None:
        if not 1 <= len(classes) <= MAX_CLASSES:
            raise UserError(
                f"data.classes must name 1 to {MAX_CLASSES} classes, got {len(classes)}"
            )
        self.colored = isinstance(next(iter(classes.values())), list)
        bytes_by_number: dict[int, int] = {}
        for class_id, (name, code) in enumerate(classes.items()):
            self._add(bytes_by_number, code, class_id + 1, f"data.classes: {name}")
        for code in void:
            self._add(bytes_by_number, code, VOID, "data.void")
        self._numbers = np.array(sorted(bytes_by_number), dtype=np.int64)
        in_order = [bytes_by_number[number] for number in sorted(bytes_by_number)]
        self._bytes = np.array(in_order, dtype=np.uint8)

    def _add(self, bytes_by_number: dict[int, int], code: PixelCode, byte: int, owner: str) -> None:
        number = self._number(code, owner)
        if number in bytes_by_number:
            raise UserError(f"{owner}: the pixel {code} has another meaning already")
        bytes_by_number[number] = byte

    def _number(self, code: PixelCode, owner: str) -> int:
        """A single number for a code."""
        if isinstance(code, list) != self.colored:
            raise UserError(
                f"{owner}: {code} is a {'value' if self.colored else 'color'}, the first class has "
                f"a {'color' if self.colored else 'value'}; use one kind for all of them"
            )
        if isinstance(code, int):
            if code < 0:
                raise UserError(f"{owner}: a value must be at least 0, got {code}")
            return code
        if len(code) != 3 or not all(0 <= channel <= 255 for channel in code):
            raise UserError(
                f"{owner}: a color must be [red, green, blue] from 0 to 255, got {code}"
            )
        red, green, blue = code
        return (red << 16) + (green << 8) + blue

    def encode(self, pixels: NDArray[np.generic], owner: str) -> Pixels:
        """Bytes `(H, W)` of a mask's pixels.

        Args:
            pixels: values `(H, W)`, or colors `(H, W, 3)`.
            owner: what an error message calls the mask.

        Raises:
            UserError: for a pixel without a meaning.
        """
        numbers = pixels.astype(np.int64)
        if self.colored:
            numbers = (numbers[..., 0] << 16) + (numbers[..., 1] << 8) + numbers[..., 2]
        places = np.searchsorted(self._numbers, numbers)
        places = places.clip(max=len(self._numbers) - 1)
        unknown = self._numbers[places] != numbers
        if unknown.any():
            first = int(numbers[unknown][0])
            color = [first >> 16, first >> 8 & 255, first & 255]
            raise UserError(
                f"{owner} holds the pixel {color if self.colored else first}, which is no class and "
                "not void; add it to data.classes or data.void"
            )
        return self._bytes[places]


class Pair(NamedTuple):
    """The names of an image and of its mask in a tree."""

    image: str
    mask: str


def list_pairs(tree: Tree, split: str, images: str, masks: str) -> list[Pair]:
    """All images of a split in the order of their names, each with the mask of the same name.

    Args:
        tree: the files.
        split: folder of the split, such as `train`.
        images, masks: folders within it. Suffixes may differ between an image and its mask.

    Raises:
        UserError: if there are no images, or if an image has no mask.
    """
    mask_of_stem = _images_by_stem(tree, f"{split}/{masks}/")
    pairs = []
    for stem, image in sorted(_images_by_stem(tree, f"{split}/{images}/").items()):
        if stem not in mask_of_stem:
            raise UserError(
                f"{tree.path}: the image {image} has no mask {split}/{masks}/{stem}.png; add it, or "
                "set data.masks to the folder of the masks"
            )
        pairs.append(Pair(image, mask_of_stem[stem]))
    if not pairs:
        raise UserError(
            f"{tree.path}: there are no images in {split}/{images}; it must hold SPLIT/{images} and "
            f"SPLIT/{masks} with files of the same names"
        )
    return pairs


def _images_by_stem(tree: Tree, folder: str) -> dict[str, str]:
    """The image files below a folder, by their path within it without the suffix."""
    files = {}
    for name in tree.files:
        if name.startswith(folder) and name.lower().endswith(SUFFIXES):
            stem, _ = os.path.splitext(name.removeprefix(folder))
            files[stem] = name
    return files


def decode_pairs(
    tree: Tree, pairs: Sequence[Pair], coding: MaskCoding, size: Sequence[int] | None
) -> MaskedImages:
    """Decode all pairs with several threads.

    Args:
        tree: the files.
        pairs: at least one.
        coding: the meaning of the masks' pixels.
        size: resize to this height and width; `None`: all images have one size.

    Raises:
        UserError: for a file that cannot be read, for a mask that does not fit its image, and for
            images of different sizes.
    """
    decode = partial(_decode_pair, tree, coding=coding, size=size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(decode, pairs))
    first_mask = decoded[0][1]
    for pair, (_, mask) in zip(pairs, decoded, strict=True):
        if mask.shape != first_mask.shape:
            raise UserError(
                f"{tree.path}: images of different sizes ({pairs[0].image} is "
                f"{_size_text(first_mask)}, {pair.image} is {_size_text(mask)}); set "
                "--data.size=[HEIGHT,WIDTH] to resize them"
            )
    images = np.stack([image for image, _ in decoded])
    masks = np.stack([mask for _, mask in decoded])
    return MaskedImages(torch.from_numpy(images), torch.from_numpy(masks))


def _decode_pair(
    tree: Tree, pair: Pair, coding: MaskCoding, size: Sequence[int] | None
) -> tuple[Pixels, Pixels]:
    """One image `(3, H, W)` and its mask `(H, W)`."""
    image = _open(tree, pair.image).convert("RGB")
    mask = _open(tree, pair.mask)
    if coding.colored:
        mask = mask.convert("RGB")
    elif len(mask.getbands()) != 1:
        raise UserError(
            f"{tree.path}: the mask {pair.mask} has colors, data.classes has values; give each "
            "class as [red, green, blue]"
        )
    if mask.size != image.size:
        raise UserError(
            f"{tree.path}: the mask {pair.mask} is {mask.width}x{mask.height}, its image "
            f"{pair.image} is {image.width}x{image.height}"
        )
    if size is not None:
        height, width = size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        # Classes cannot be averaged.
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    pixels = np.asarray(image, dtype=np.uint8)
    encoded = coding.encode(np.asarray(mask), f"{tree.path}: the mask {pair.mask}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), encoded


def _open(tree: Tree, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(tree.read(name)))
        image.load()
    except Exception as error:  # decoders raise any exception, depending on the broken bytes
        raise UserError(
            f"{tree.path}: {name} cannot be read as an image; is the copy complete?"
        ) from error
    return image


def _size_text(mask: Pixels) -> str:
    height, width = mask.shape
    return f"{width}x{height}"


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixel values in [0, 1], to four decimals.

    Args:
        images: uint8 `(N, C, H, W)`.
    """
    means = []
    deviations = []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        # Counts are exact, and need no floating-point copy of the images.
        counts = sum(image.flatten().bincount(minlength=256) for image in channel)
        share = torch.as_tensor(counts, dtype=torch.float64) / channel.numel()
        mean = (share * values).sum()
        deviation = (share * (values - mean).square()).sum().sqrt()
        means.append(round(float(mean), 4))
        # A constant channel has a deviation of 0, by which nothing can be divided.
        deviations.append(round(float(deviation), 4) or 1.0)
    return tuple(means), tuple(deviations)
