"""MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_lightning.data.files import data_root, no_empty_folders
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


class MNISTDataModule(ImageDataModule):
    """MNIST (LeCun, Cortes and Burges): 60,000 + 10,000 handwritten digits, 28x28.

    Args:
        root: folder that holds `MNIST/raw/*-ubyte` (torchvision's layout); by default
            `KD_DATA_ROOT`, else `./data`.
        download: whether to download missing files.
        base: see ImageDataModule.
    """

    name = "mnist"
    classes = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)

    def __init__(
        self, root: str | None = None, download: bool = True, **base: Any
    ) -> None:
        super().__init__(**base)
        self.root = data_root(root)
        self.download = download

    def load(self, split: str) -> Images:
        """Read all samples of "train" or "test", after downloading missing files.

        Raises:
            UserError: if the files are missing and cannot be downloaded, or are damaged.
        """
        # Imported here, because importing torchvision is slow.
        from torchvision.datasets import MNIST

        folder = self.root / "MNIST" / "raw"
        try:
            dataset = MNIST(self.root, train=split == "train", download=False)
        except Exception as error:
            if "Dataset not found" not in str(error):
                raise UserError(
                    f"MNIST: the files in {folder} cannot be read; "
                    "delete them to download them again"
                ) from error
            dataset = self._download(split, folder)
        expected = 60_000 if split == "train" else 10_000
        images = dataset.data
        target = dataset.targets
        if images.shape != (expected, 28, 28) or target.shape != (expected,):
            raise UserError(
                f"MNIST: {folder} does not hold the {expected:,} {split} images; "
                "delete it to download it again"
            )
        return Images(images[:, None], target.long())

    def _download(self, split: str, folder: Path) -> MNIST:
        from torchvision.datasets import MNIST

        remedy = (
            "put torchvision's MNIST files there, or set --data.root or KD_DATA_ROOT to the folder "
            "that holds MNIST/"
        )
        if not self.download:
            raise UserError(f"MNIST: no data in {folder} and download is off; {remedy}")
        try:
            with no_empty_folders(folder):
                return MNIST(self.root, train=split == "train", download=True)
        except Exception as error:
            raise UserError(
                f"MNIST: no data in {folder}, and the download failed; {remedy}"
            ) from error
