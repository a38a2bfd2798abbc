"""Masks, one label per pixel: from the pixels of files to bytes, and from bytes to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.images.decoding import Pixels
from kd_lightning.errors import UserError
from kd_lightning.types import UNLABELLED

VOID = 0
"""The byte of a void pixel. Augmentations fill with 0, so pixels from outside are void."""

WITHHELD = 255
"""The byte of a pixel whose class is withheld. Class k has the byte k + 1."""

MAX_CLASSES = WITHHELD - 1

PixelCode = int | list[int]
"""How a mask file marks a class: by a gray or palette value, or by a color `[red, green, blue]`."""


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

    def __init__(
        self, classes: Mapping[str, PixelCode], void: Sequence[PixelCode]
    ) -> None:
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
        # Two arrays in the order of the numbers, for a binary search.
        numbers = sorted(bytes_by_number)
        self._numbers = np.array(numbers, dtype=np.int64)
        ordered_bytes = [bytes_by_number[number] for number in numbers]
        self._bytes = np.array(ordered_bytes, dtype=np.uint8)

    def _add(
        self,
        bytes_by_number: dict[int, int],
        code: PixelCode,
        byte: int,
        owner: str,
    ) -> None:
        number = self._number(code, owner)
        if number in bytes_by_number:
            raise UserError(f"{owner}: the pixel {code} has another meaning already")
        bytes_by_number[number] = byte

    def _number(self, code: PixelCode, owner: str) -> int:
        """A single number for a code: the value, or the color's bytes in one integer."""
        if isinstance(code, list) != self.colored:
            kind = "color" if self.colored else "value"
            raise UserError(
                f"{owner}: {code} is not a {kind}, but the first class has a {kind}; use one kind "
                "for all of them"
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
            # The same packing as for the codes of the classes.
            red = numbers[..., 0] << 16
            green = numbers[..., 1] << 8
            numbers = red + green + numbers[..., 2]
        places = np.searchsorted(self._numbers, numbers)
        # Numbers above the largest known one have a place behind the end.
        places = places.clip(max=len(self._numbers) - 1)
        unknown = self._numbers[places] != numbers
        if unknown.any():
            first = pixels[unknown][0].tolist()
            raise UserError(
                f"{owner} holds the pixel {first}, which is no class and not void; add it to "
                "data.classes or data.void"
            )
        return self._bytes[places]
