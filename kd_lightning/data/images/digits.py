"""scikit-learn's handwritten digits: real data inside its wheel, so nothing is downloaded."""

from __future__ import annotations

import functools
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.data.subsets import stratified_rank

TEST_FRACTION = 1 / 3
FILE = "sklearn/datasets/data/digits.csv.gz"


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images, uint8 `(1797, 1, 8, 8)`, and labels, int64 `(1797,)`."""
    file = Path(str(distribution("scikit-learn").locate_file(FILE)))
    # Importing scikit-learn takes half a second, so its file is read directly if it is in its usual
    # place.
    if file.is_file():
        rows = np.loadtxt(file, delimiter=",")
    else:
        from sklearn.datasets import load_digits

        rows = np.column_stack(load_digits(return_X_y=True))
    pixels, target = torch.from_numpy(rows).split([64, 1], dim=1)
    # Pixel values range from 0 to 16; scaled to 0 to 255 and rounded, they fit into uint8.
    scaled = pixels.mul(255 / 16).round()
    images = scaled.to(torch.uint8).view(-1, 1, 8, 8)
    return images, target[:, 0].long()


class DigitsDataModule(ImageDataModule):
    """Handwritten digits (Alpaydin and Kaynak 1998, UCI): 1,797 images, 8x8, from scikit-learn.

    This form of the data set has no official split. A third of each class (602 of 1,797 images) is
    the test set, selected by a fixed hash of the row that does not depend on any seed.
    """

    name = "digits"
    classes = tuple("0123456789")
    mean = (0.3058,)
    std = (0.3762,)

    def load(self, split: str) -> Images:
        """All samples of "train" or "test"."""
        images, target = _digits()
        rank = stratified_rank(target, torch.arange(len(target)), "digits-test")
        in_test = rank < TEST_FRACTION
        rows = in_test if split == "test" else ~in_test
        return Images(images[rows], target[rows])
