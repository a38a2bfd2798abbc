"""Small data sets of images in class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_lightning.data import ImageFolderDataModule
from kd_lightning.errors import UserError

CLASSES = ("ant", "bee")


def picture(seed: int, width: int = 6, height: int = 6) -> Image.Image:
    """An RGB image of random pixels."""
    pixels = np.random.default_rng(seed).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def write_folder(
    root: Path, counts: dict[str, int], classes: tuple[str, ...] = CLASSES
) -> Path:
    """Write as many PNG files per class and split as `counts` says; returns the root."""
    seed = 0
    for split, count in counts.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(seed).save(folder / f"{number}.png")
                seed += 1
    return root


def complaint(path: Path, **options: Any) -> str:
    """The message of the UserError that reading a folder raises."""
    with pytest.raises(UserError) as caught:
        ImageFolderDataModule(str(path), **options).predict_dataloader()
    assert "\n" not in str(caught.value)
    return str(caught.value)
