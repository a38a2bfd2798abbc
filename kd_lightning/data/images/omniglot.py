"""Omniglot's small background sets: a few drawings each of many characters."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.data.subsets import stratified_rank
from kd_lightning.errors import UserError

FOLDERS = ("images_background_small1", "images_background_small2")
TEST_FRACTION = 0.25
SIDE = 28


class OmniglotDataModule(ImageDataModule):
    """Omniglot (Lake et al. 2015): 242 handwritten characters, 20 drawings each, as one classification task.

    The characters of `omniglot/images_background_small1` and `2` below the root; alphabets that stand in both are read once.
    Drawings are ink on black, averaged down from 105x105 to 28x28. Of each character's 20 drawings 5 are the test set,
    chosen by a fixed hash, whatever the seeds.

    Args:
        root: folder that holds `omniglot/`; else `KD_DATA_ROOT`, else `./data`.
        base: see ImageDataModule.
    """

    name = "omniglot"
    mean = (0.0805,)
    std = (0.2359,)

    def __init__(self, root: str | None = None, **base: Any) -> None:
        self.root = data_root(root)
        self._drawings = self._find()
        self.classes = tuple(self._drawings)
        super().__init__(**base)

    def _find(self) -> dict[str, list[Path]]:
        """The drawings of each character, `Alphabet/characterNN`, in the order of names."""
        found: dict[str, list[Path]] = {}
        for folder in FOLDERS:
            for character in sorted((self.root / "omniglot" / folder).glob("*/character*")):
                found.setdefault(
                    f"{character.parent.name}/{character.name}", sorted(character.glob("*.png"))
                )
        empty = [name for name, drawings in found.items() if not drawings]
        if not found or empty:
            what = f"{empty[0]} holds no drawing" if empty else "no characters"
            where, how = (
                self.root / "omniglot",
                "put images_background_small1 and 2 there, or set --data.root or KD_DATA_ROOT",
            )
            raise UserError(f"Omniglot: {what} in {where}; {how}")
        return dict(sorted(found.items()))

    def load(self, split: str) -> Images:
        target = torch.tensor(
            [label for label, drawings in enumerate(self._drawings.values()) for _ in drawings]
        )
        test = stratified_rank(target, torch.arange(len(target)), "omniglot-test") < TEST_FRACTION
        chosen = test if split == "test" else ~test
        images = _decoded(tuple(path for drawings in self._drawings.values() for path in drawings))
        return Images(images[chosen], target[chosen])


@functools.cache
def _decoded(paths: tuple[Path, ...]) -> Tensor:
    """All drawings, uint8 `(N, 1, 28, 28)`; decoding takes four seconds, so a process does it once."""
    return torch.from_numpy(np.stack([_drawing(path) for path in paths]))[:, None]


def _drawing(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        with Image.open(path) as image:
            # The files are black ink on white in one bit: averaged over a pixel's area, ink as the bright part.
            return 255 - np.asarray(
                image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8
            )
    except OSError as error:
        raise UserError(
            f"Omniglot: {path} cannot be read as an image; is the copy complete?"
        ) from error
