"""scikit-learn's 1,797 handwritten digits, 8x8: real data inside the wheel, so nothing is ever downloaded."""

from __future__ import annotations

import functools
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.data.subsets import stratified_rank

TEST_FRACTION = 1 / 3
FILE = "sklearn/datasets/data/digits.csv.gz"


@functools.cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    file = Path(str(distribution("scikit-learn").locate_file(FILE)))
    if file.is_file():  # importing scikit-learn costs half a second
        rows = np.loadtxt(file, delimiter=",")
    else:  # a release that keeps it elsewhere
        from sklearn.datasets import load_digits

        rows = np.column_stack(load_digits(return_X_y=True))
    pixels, target = torch.from_numpy(rows).split([64, 1], dim=1)
    # Pixels count to 16; uint8 holds them as n/16 of 255, rounded.
    return pixels.mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8), target[:, 0].long()


class DigitsDataModule(ImageDataModule):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998, UCI), as scikit-learn ships it.

    The data set has no official split in this form: a third of each class (602 of 1,797) is the test set, chosen by a
    fixed hash of the row, whatever the seeds.
    """

    name = "digits"
    classes = tuple("0123456789")
    mean = (0.3058,)
    std = (0.3762,)

    def load(self, split: str) -> Images:
        images, target = _digits()
        test = stratified_rank(target, torch.arange(len(target)), "digits-test") < TEST_FRACTION
        rows = test if split == "test" else ~test
        return Images(images[rows], target[rows])
