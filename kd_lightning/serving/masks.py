"""Writes the predicted class of each pixel as PNG files."""

from __future__ import annotations

import colorsys
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from kd_lightning.data.images.listing import SUFFIXES
from kd_lightning.errors import UserError

MAX_CLASSES = 256
"""A pixel of a palette image holds one byte."""


def mask_png(probabilities: Tensor) -> bytes:
    """A PNG whose pixel values are the classes; its palette gives each class a color.

    Args:
        probabilities: `(K, H, W)`.

    Raises:
        UserError: for more than 256 classes.
    """
    classes = len(probabilities)
    if classes > MAX_CLASSES:
        raise UserError(
            f"masks hold at most {MAX_CLASSES} classes, the network has {classes}"
        )
    # The pixel values are the classes, so that other programs can read them.
    pixels = probabilities.argmax(0).numpy().astype(np.uint8)
    image = Image.fromarray(pixels)
    image.putpalette(_palette(classes))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _palette(classes: int) -> list[int]:
    """Red, green and blue of each class; class 0 is black, as backgrounds are."""
    colors = [0, 0, 0]
    for number in range(1, classes):
        hue = (number - 1) / max(1, classes - 1)
        for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0):
            colors.append(round(255 * part))
    return colors


class MaskFolder:
    """A folder with one mask for each input.

    Args:
        folder: made if it does not exist.

    Raises:
        UserError: if it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--masks: cannot write to {folder} ({error.strerror})"
            ) from error

    def write(self, name: str, probabilities: Tensor) -> Path:
        """Write a mask, named after its input; inputs of one name get numbers.

        Args:
            name: of the input.
            probabilities: `(K, H, W)`.

        Returns:
            The path of the file.
        """
        stem = Path(name).name
        if stem.lower().endswith(SUFFIXES):
            stem = stem.rpartition(".")[0]
        # A name from a user's file must not lead out of the folder.
        stem = re.sub(r"[^\w.-]", "_", stem)
        unique = stem
        number = 1
        # Inputs of different folders may have one name.
        while unique in self._used:
            number += 1
            unique = f"{stem}-{number}"
        self._used.add(unique)
        path = self.folder / f"{unique}.png"
        path.write_bytes(mask_png(probabilities))
        return path
