"""Images in folders named by class, or in a zip of such folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.image_cache import decoded
from kd_lightning.data.images.listing import Listing, human_names, list_images
from kd_lightning.data.images.new_images import PREDICTS, read_new_images
from kd_lightning.data.images.new_samples import ImageReader
from kd_lightning.data.images.picture import MAX_PIXELS
from kd_lightning.data.images.source import Images, ImageSource
from kd_lightning.data.images.tree import open_tree
from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.notices import notice
from kd_lightning.data.predictions import write_prediction_table
from kd_lightning.errors import UserError


class ImageFolderDataModule(ImageDataModule):
    """Any images in `train/CLASS/`, `val/CLASS/` and `test/CLASS/` of a folder or a zip.

    Images are decoded once, to what an image viewer shows (see `picture.py`), into a cache that all
    processes and runs share. A changed source is decoded again. Classes are sorted by the names of
    their folders; `words.txt` beside `train` (`CLASS<TAB>name, other names`) gives them names for
    people. The mean and standard deviation of the images in `train` normalize all images.

    A folder `val`, `valid` or `validation` is the validation split: its images are never trained
    on, and `data.validation` holds no other samples out; 0 leaves the folder unused. Without a
    folder `test`, its images are tested on, too, and a line says so.

    Args:
        path: path of the folder or the zip, absolute or relative to the root.
        root: folder of the data sets; by default `KD_DATA_ROOT`, else `./data`.
        size: resize the shorter side of each image to this many pixels and crop the central square;
            required if images differ in size.
        grey: decode to one channel instead of three.
        cache: folder for decoded images; by default `KD_CACHE`, else `~/.cache/kd_lightning`.
        predict_folder: images without labels for `kd predict`, in a folder or a zip, at any depth;
            default: the test split.
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
        predict_folder: str | None = None,
        **base: Any,
    ) -> None:
        if size is not None and (size < 1 or size * size > MAX_PIXELS):
            raise UserError(
                f"data.size must be at least 1 pixel and at most {MAX_PIXELS:,} for the square, "
                f"got {size}"
            )
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
        if listing.validation_folder is not None:
            self.first_validation_row = listing.num_train
        self.size = size
        self.grey = grey
        self.predict_folder = predict_folder
        self._files = dict(listing.files)
        self._splits: dict[str, Images] = {}
        for split, images in content.images.items():
            target = torch.tensor(listing.target[split])
            self._splits[split] = Images(images, target)
        super().__init__(**base)
        # The user must know that no images were left for a test.
        if listing.test_folder == listing.validation_folder:
            self._report_missing_test(source, listing)

    def _report_missing_test(self, source: Path, listing: Listing) -> None:
        folder = listing.test_folder
        use = f"{folder} is the test split"
        if self.validation > 0:
            use = (
                f"{folder} is both the validation split and the test split, so a test of the best "
                f"epoch is too good; rename {folder} to test to validate on a part of train"
            )
        notice(f"{source} has no folder test: {use}")

    def load(self, split: str) -> Images:
        """All samples of "train", "test" or "predict"."""
        if split not in self._splits:
            channels, *size = self.raw("train").images.shape[1:]
            folder = Path(str(self.predict_folder)).expanduser()
            names, samples = read_new_images(folder, self.size, channels == 1, size)
            self._files[split] = names
            self._splits[split] = samples
        return self._splits[split]

    def source(self, stage: str) -> ImageSource:
        """The samples of "train", "validation", "test" or "predict"."""
        if stage == PREDICTS and stage not in self._sources:
            target = self.raw(PREDICTS).target
            self._sources[stage] = self._source(
                PREDICTS, torch.arange(len(target)), target, []
            )
        return super().source(stage)

    def input_reader(self) -> ImageReader:
        """Decodes images, and resizes them as the training images."""
        return replace(super().input_reader(), size=self.size)

    def predict_dataloader(self) -> BatchLoader:
        """The images of `predict_folder`, or the test split if there is none."""
        return self.loader(PREDICTS if self.predict_folder else "test")

    def write_predictions(
        self, predictions: Mapping[str, Tensor], folder: Path
    ) -> Path:
        """Write `predictions.tsv`: per image its class, the probability of each class, its file.

        Args:
            predictions: `index` `(N,)` and `logits` `(N, K)`.
            folder: of the run.
        """
        files = self._files[PREDICTS if self.predict_folder else "test"]
        samples = [(name,) for name in files]
        path = folder / "predictions.tsv"
        return write_prediction_table(
            path, predictions, self.classes, samples, ["file"]
        )
