"""Pairs of an image and a mask of the same name in a folder or a zip, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd_lightning.data.images.decoding import Pixels
from kd_lightning.data.images.listing import is_image, report_skipped
from kd_lightning.data.images.masks import MaskCoding
from kd_lightning.data.images.picture import as_shown, check_size, open_picture
from kd_lightning.data.images.tree import Tree
from kd_lightning.errors import UserError


@dataclass
class MaskedImages:
    """Decoded images and masks of one size.

    Attributes:
        images: uint8 `(N, 3, H, W)`.
        masks: uint8 `(N, H, W)`; see the bytes in `masks.py`.
    """

    images: Tensor
    masks: Tensor


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
        UserError: if there are no images, if an image has no mask, or if two files have one name.
    """
    # Image and mask may differ in their suffix: photographs are JPEG, masks PNG.
    mask_of_stem = _images_by_stem(tree, f"{split}/{masks}/")
    pairs = []
    for stem, image in sorted(_images_by_stem(tree, f"{split}/{images}/").items()):
        if stem not in mask_of_stem:
            raise UserError(
                f"{tree.path}: the image {image} has no mask {split}/{masks}/{stem}.png; add it, "
                "or set data.masks to the folder of the masks"
            )
        pairs.append(Pair(image, mask_of_stem[stem]))
    if not pairs:
        raise UserError(
            f"{tree.path}: there are no images in {split}/{images}; it must hold SPLIT/{images} "
            f"and SPLIT/{masks} with files of the same names"
        )
    used = {pair.mask for pair in pairs}
    unused = [mask for mask in mask_of_stem.values() if mask not in used]
    report_skipped(tree, unused, f"in {split}/{masks} that are masks of no image")
    return pairs


def _images_by_stem(tree: Tree, folder: str) -> dict[str, str]:
    """The image files below a folder, by their path within it without the suffix."""
    files: dict[str, str] = {}
    skipped: list[str] = []
    for name in tree.files:
        if not name.startswith(folder):
            continue
        if not is_image(name):
            skipped.append(name)
            continue
        stem, _ = os.path.splitext(name.removeprefix(folder))
        # Nothing says which of the two is meant.
        if stem in files:
            raise UserError(
                f"{tree.path}: {files[stem]} and {name} differ only in their suffix; keep one"
            )
        files[stem] = name
    report_skipped(tree, skipped, f"in {folder} that have no suffix of an image")
    return files


def decode_pairs(
    tree: Tree,
    pairs: Sequence[Pair],
    coding: MaskCoding,
    size: Sequence[int] | None,
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
    # Threads suffice: Pillow decodes without Python's global lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(decode, pairs))
    first_mask = decoded[0][1]
    images: list[Pixels] = []
    masks: list[Pixels] = []
    for pair, (image, mask) in zip(pairs, decoded, strict=True):
        # All samples of a split form one tensor.
        if mask.shape != first_mask.shape:
            raise UserError(
                f"{tree.path}: images of different sizes ({pairs[0].image} is "
                f"{_size_text(first_mask)}, {pair.image} is {_size_text(mask)}); set "
                "--data.size=[HEIGHT,WIDTH] to resize them"
            )
        images.append(image)
        masks.append(mask)
    return MaskedImages(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)),
    )


def _decode_pair(
    tree: Tree,
    pair: Pair,
    coding: MaskCoding,
    size: Sequence[int] | None,
) -> tuple[Pixels, Pixels]:
    """One image `(3, H, W)` and its mask `(H, W)`."""
    image_owner = f"{tree.path}: {pair.image}"
    image = as_shown(
        open_picture(tree.read(pair.image), image_owner), False, image_owner
    )
    mask_owner = f"{tree.path}: the mask {pair.mask}"
    # The values of a mask are codes, which must not be scaled.
    mask = open_picture(tree.read(pair.mask), mask_owner)
    if coding.colored:
        mask = as_shown(mask, False, mask_owner)
    elif len(mask.getbands()) != 1:
        raise UserError(
            f"{mask_owner} has colors, data.classes has values; give each "
            "class as [red, green, blue]"
        )
    if mask.size != image.size:
        raise UserError(
            f"{mask_owner} is {mask.width}x{mask.height}, its image "
            f"{pair.image} is {image.width}x{image.height}"
        )
    if size is not None:
        height, width = size
        check_size(height * width, f"data.size={list(size)}:")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        # Classes cannot be averaged.
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    pixels = np.asarray(image, dtype=np.uint8)
    encoded = coding.encode(np.asarray(mask), mask_owner)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), encoded


def decode_resized(content: bytes, owner: str, size: tuple[int, int]) -> Pixels:
    """Decode an image without a mask, resized as `decode_pairs` resizes images.

    Args:
        content: of the file.
        owner: what an error message calls the file.
        size: height H and width W.

    Returns:
        uint8 `(3, H, W)`.

    Raises:
        UserError: if the image cannot be read.
    """
    height, width = size
    image = as_shown(open_picture(content, owner), False, owner)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size_text(mask: Pixels) -> str:
    height, width = mask.shape
    return f"{width}x{height}"
