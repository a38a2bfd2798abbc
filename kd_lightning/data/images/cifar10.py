"""CIFAR-10 in the authors' file layout, which torchvision also uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from kd_lightning.data.files import data_root, no_empty_folders
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.pickles import read_arrays
from kd_lightning.data.images.source import Images
from kd_lightning.errors import UserError


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 photographs in ten classes, 32x32.

    Args:
        root: folder that holds `cifar-10-batches-py/` (torchvision's layout); by default
            `KD_DATA_ROOT`, else `./data`.
        download: whether to download missing files.
        base: see ImageDataModule.
    """

    name = "cifar10"
    classes: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)

    title: ClassVar[str] = "CIFAR-10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    }
    labels_key: ClassVar[str] = "labels"
    samples: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}

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
        folder = self.root / self.folder
        # Files of an interrupted download may be missing.
        if not all((folder / name).is_file() for name in self.files[split]):
            self._download(folder)
        expected = self.samples[split]
        images = torch.empty(expected, 3, 32, 32, dtype=torch.uint8)
        target = torch.empty(expected, dtype=torch.int64)
        start = 0
        for name in self.files[split]:
            pixels, labels = self._read(folder / name)
            stop = start + len(pixels)
            # More images than the data set has: the check below reports it.
            if stop > expected:
                break
            file_images = torch.from_numpy(pixels)
            images[start:stop] = file_images.view(-1, 3, 32, 32)
            target[start:stop] = torch.from_numpy(labels)
            start = stop
        if start != expected:
            raise UserError(
                f"{self.title}: {folder} does not hold the {expected:,} {split} images; "
                "delete it to download it again"
            )
        return Images(images, target)

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read one file: pixels `(n, 3072)`, channel by channel, and labels `(n,)`."""
        content = read_arrays(path, self.title)
        try:
            pixels = content["data"]
            labels = np.asarray(content[self.labels_key], dtype=np.int64)
            valid = self._is_valid(pixels, labels)
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise UserError(
                f"{self.title}: {path} does not hold images and labels; "
                "delete it to download it again"
            )
        return np.ascontiguousarray(pixels), labels

    def _is_valid(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bool:
        """Whether the arrays are 32x32 color images and class ids of the same number."""
        if labels.ndim != 1 or pixels.dtype != np.uint8:
            return False
        # The files store each image as a row of red, green and blue.
        if pixels.shape != (len(labels), 3 * 32 * 32):
            return False
        if len(labels) == 0:
            return True
        return bool(0 <= labels.min() <= labels.max() < len(self.classes))

    def _download(self, folder: Path) -> None:
        remedy = (
            "put torchvision's files there, or set --data.root or KD_DATA_ROOT to the folder that "
            f"holds {self.folder}/"
        )
        if not self.download:
            raise UserError(
                f"{self.title}: no data in {folder} and download is off; {remedy}"
            )
        # Imported here, because importing torchvision is slow.
        from torchvision import datasets

        # torchvision knows the address and the checksum of each archive.
        dataset = getattr(datasets, self.title.replace("-", ""))
        try:
            with no_empty_folders(folder):
                datasets.utils.download_and_extract_archive(
                    dataset.url,
                    self.root,
                    filename=dataset.filename,
                    md5=dataset.tgz_md5,
                )
        except Exception as error:
            raise UserError(
                f"{self.title}: no data in {folder}, and the download failed; {remedy}"
            ) from error
