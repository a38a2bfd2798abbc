"""Images in folders named by class, or in a zip of such folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.files import human_names, list_images, open_tree
from kd_lightning.data.images.image_cache import decoded
from kd_lightning.data.images.source import Images
from kd_lightning.errors import UserError


class ImageFolderDataModule(ImageDataModule):
    """Any images in `train/CLASS/` and `test/CLASS/` (or `val/CLASS/`) of a folder, or of a zip of one.

    Images are decoded once, into a cache that all processes and runs share; a source that has changed is decoded anew.
    Classes are in the order of their folders' names; `words.txt` beside `train` (`CLASS<TAB>name, other names`) names them
    for people. Normalization is by mean and standard deviation of the training images.

    Args:
        path: of the folder or the zip, below the root or absolute.
        root: where data sets lie; else `KD_DATA_ROOT`, else `./data`.
        size: resize each image's shorter side to this many pixels, and cut out the square in the middle; needed where
            images differ in size.
        grey: decode to one channel; otherwise to three.
        cache: folder for decoded images; else `KD_CACHE`, else `~/.cache/kd_lightning`.
        base: see ImageDataModule.

    Raises:
        UserError: where the layout is another one, an image is broken, or sizes differ.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        size: int | None = None,
        grey: bool = False,
        cache: str | None = None,
        **base: Any,
    ) -> None:
        if size is not None and size < 1:
            raise UserError(f"data.size must be at least 1 pixel, got {size}")
        where = data_root(root) / Path(path).expanduser()
        tree = open_tree(where)
        listing = list_images(tree)
        found = decoded(tree, listing, size, grey, cache)
        self.name = where.name.removesuffix(".zip")
        self.folders, self.classes = listing.classes, human_names(tree, listing.classes)
        self.mean, self.std = found.mean, found.std
        self._splits = {
            split: Images(found.images[split], torch.tensor(listing.target[split]))
            for split in found.images
        }
        super().__init__(**base)

    def load(self, split: str) -> Images:
        return self._splits[split]
