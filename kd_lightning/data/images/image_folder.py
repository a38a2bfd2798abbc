"""Images in folders named by class, or in a zip of such folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.image_cache import decoded
from kd_lightning.data.images.listing import human_names, list_images
from kd_lightning.data.images.source import Images
from kd_lightning.data.images.tree import open_tree
from kd_lightning.errors import UserError


class ImageFolderDataModule(ImageDataModule):
    """Any images in `train/CLASS/` and `test/CLASS/` (or `val/CLASS/`) of a folder or a zip.

    Images are decoded once, into a cache that all processes and runs share. A changed source is
    decoded again. Classes are sorted by the names of their folders; `words.txt` beside `train`
    (`CLASS<TAB>name, other names`) gives them names for people. The mean and standard deviation of
    the training images normalize all images.

    Args:
        path: path of the folder or the zip, absolute or relative to the root.
        root: folder of the data sets; by default `KD_DATA_ROOT`, else `./data`.
        size: resize the shorter side of each image to this many pixels and crop the central square;
            required if images differ in size.
        grey: decode to one channel instead of three.
        cache: folder for decoded images; by default `KD_CACHE`, else `~/.cache/kd_lightning`.
        base: see ImageDataModule.

    Raises:
        UserError: if the layout is unknown, an image is damaged, or sizes differ.
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
        source = data_root(root) / Path(path).expanduser()
        tree = open_tree(source)
        listing = list_images(tree)
        content = decoded(tree, listing, size, grey, cache)

        # The base class reads these attributes, so they are set first.
        self.name = source.name.removesuffix(".zip")
        self.folders = listing.classes
        self.classes = human_names(tree, listing.classes)
        self.mean = content.mean
        self.std = content.std
        self._splits: dict[str, Images] = {}
        for split, images in content.images.items():
            target = torch.tensor(listing.target[split])
            self._splits[split] = Images(images, target)
        super().__init__(**base)

    def load(self, split: str) -> Images:
        """All samples of "train" or "test"."""
        return self._splits[split]
