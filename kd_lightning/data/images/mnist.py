"""MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.errors import UserError


class MNISTDataModule(ImageDataModule):
    """MNIST (LeCun, Cortes and Burges): 60,000 + 10,000 digits, 28x28.

    Args:
        root: folder that holds `MNIST/raw/*-ubyte` (torchvision's layout); else `KD_DATA_ROOT`, else `./data`.
        download: fetch missing files.
        base: see ImageDataModule.
    """

    name = "mnist"
    classes = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)

    def __init__(self, root: str | None = None, download: bool = True, **base: Any) -> None:
        super().__init__(**base)
        self.root, self.download = data_root(root), download

    def load(self, split: str) -> Images:
        from torchvision.datasets import MNIST  # here, because torchvision's import is slow

        where = self.root / "MNIST" / "raw"
        try:
            data = MNIST(self.root, train=split == "train", download=False)
        except Exception as error:
            if "Dataset not found" not in str(error):
                raise UserError(
                    f"MNIST: the files in {where} cannot be read; delete them to download them again"
                ) from error
            data = self._download(MNIST, split, where)
        expected = 60_000 if split == "train" else 10_000
        if data.data.shape != (expected, 28, 28) or data.targets.shape != (expected,):
            raise UserError(
                f"MNIST: {where} does not hold the {expected:,} {split} images; delete it to download again"
            )
        return Images(data.data[:, None], data.targets.long())

    def _download(self, dataset: Any, split: str, where: Path) -> Any:
        how = "put torchvision's MNIST files there, or point --data.root or KD_DATA_ROOT to the folder that holds MNIST/"
        if not self.download:
            raise UserError(f"MNIST: no data in {where} and download is off; {how}")
        try:
            return dataset(self.root, train=split == "train", download=True)
        except Exception as error:
            raise UserError(f"MNIST: no data in {where}, and the download failed; {how}") from error
