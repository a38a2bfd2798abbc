"""A small data set in CamVid's layout, drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"sky": 0, "road": 1, "car": 2}
VOID = 11
HEIGHT, WIDTH = 12, 16


def draw(
    seed: int, height: int = HEIGHT, width: int = WIDTH
) -> tuple[Image.Image, Image.Image]:
    """An image and its mask: sky over road, a car between them, and a void column.

    Each pixel's red is `40 * class + 1` (void: 201), so that images show where labels belong.
    """
    drawn = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    horizon = int(drawn.integers(3, height - 4))
    left = int(drawn.integers(1, width - 6))
    mask[horizon:] = 1
    mask[horizon - 2 : horizon + 2, left : left + 4] = 2
    mask[:, int(drawn.integers(width))] = VOID
    pixels = drawn.integers(1, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.where(mask == VOID, 201, 40 * mask + 1)
    return Image.fromarray(pixels), Image.fromarray(mask)


def write_pair(
    root: Path, split: str, name: str, image: Image.Image, mask: Image.Image
) -> None:
    """Save as PNG, which keeps every pixel."""
    for folder, picture in (("images", image), ("labels", mask)):
        path = root / split / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def write_camvid(
    root: Path,
    train: int = 8,
    val: int = 4,
    test: int = 4,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Path:
    """Write the three splits; returns the root."""
    seed = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            write_pair(root, split, f"{number:02}", *draw(seed, height, width))
            seed += 1
    return root
