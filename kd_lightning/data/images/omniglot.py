"""Omniglot's small background sets: a few drawings each of many characters."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.picture import as_shown, open_picture
from kd_lightning.data.images.source import Images
from kd_lightning.data.images.tree import read_regular
from kd_lightning.data.subsets import stratified_rank
from kd_lightning.errors import UserError

FOLDERS = ("images_background_small1", "images_background_small2")
TEST_FRACTION = 0.25
SIDE = 28


class OmniglotDataModule(ImageDataModule):
    """Omniglot (Lake et al. 2015): 242 handwritten characters, 20 drawings each, as classes.

    The characters come from `omniglot/images_background_small1` and `2` below the root; alphabets
    that are in both are read once. Drawings are black ink on white; they are inverted and averaged
    down from 105x105 to 28x28. Of each character's 20 drawings, 5 are the test set, selected by a
    fixed hash that does not depend on any seed.

    Args:
        root: folder that holds `omniglot/`; by default `KD_DATA_ROOT`, else `./data`.
        base: see ImageDataModule.
    """

    name = "omniglot"
    mean = (0.0805,)
    std = (0.2359,)

    def __init__(self, root: str | None = None, **base: Any) -> None:
        self.root = data_root(root)
        self._drawings = _list_drawings(self.root / "omniglot")
        # The base class checks options against the classes, so they are set first.
        self.classes = tuple(self._drawings)
        super().__init__(**base)

    def load(self, split: str) -> Images:
        """Read all samples of "train" or "test".

        Raises:
            UserError: if a drawing cannot be read.
        """
        paths: list[Path] = []
        labels: list[int] = []
        for label, drawings in enumerate(self._drawings.values()):
            paths += drawings
            labels += [label] * len(drawings)
        target = torch.tensor(labels)
        rank = stratified_rank(target, torch.arange(len(target)), "omniglot-test")
        in_test = rank < TEST_FRACTION
        rows = in_test if split == "test" else ~in_test
        images = _decode_all(tuple(paths))
        return Images(images[rows], target[rows])


def _list_drawings(folder: Path) -> dict[str, list[Path]]:
    """The drawings of each character, `Alphabet/characterNN`, both sorted by name."""
    drawings: dict[str, list[Path]] = {}
    for background in FOLDERS:
        for character in sorted((folder / background).glob("*/character*")):
            name = f"{character.parent.name}/{character.name}"
            drawings.setdefault(name, sorted(character.glob("*.png")))
    remedy = (
        "put images_background_small1 and 2 there, or set --data.root or KD_DATA_ROOT"
    )
    if not drawings:
        raise UserError(f"Omniglot: no characters in {folder}; {remedy}")
    for name, paths in drawings.items():
        if not paths:
            raise UserError(f"Omniglot: {name} holds no drawing in {folder}; {remedy}")
    return dict(sorted(drawings.items()))


@functools.cache
def _decode_all(paths: tuple[Path, ...]) -> Tensor:
    """All drawings, uint8 `(N, 1, 28, 28)`. Decoding takes four seconds, so it is done once."""
    drawings = [_decode(path) for path in paths]
    return torch.from_numpy(np.stack(drawings))[:, None]


def _decode(path: Path) -> NDArray[np.uint8]:
    """One drawing, uint8 `(28, 28)`, with bright ink on black."""
    owner = f"Omniglot: {path}"
    # Gray, because one-bit images cannot be averaged over the area of a pixel.
    gray = as_shown(open_picture(read_regular(path), owner), grey=True, owner=owner)
    small = gray.resize((SIDE, SIDE), Image.Resampling.BOX)
    return 255 - np.asarray(small, dtype=np.uint8)
