"""CIFAR-10 in the layout of its authors, which is torchvision's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kd_lightning.data.files import data_root
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.pickles import read_arrays
from kd_lightning.data.images.source import Images
from kd_lightning.errors import UserError


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 photographs in ten classes, 32x32.

    Args:
        root: folder that holds `cifar-10-batches-py/` (torchvision's layout); else `KD_DATA_ROOT`, else `./data`.
        download: fetch missing files.
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

    def __init__(self, root: str | None = None, download: bool = True, **base: Any) -> None:
        super().__init__(**base)
        self.root, self.download = data_root(root), download

    def load(self, split: str) -> Images:
        where = self.root / self.folder
        if not all((where / name).is_file() for name in self.files[split]):
            self._download(where)
        expected, start = self.samples[split], 0
        images = torch.empty(expected, 3, 32, 32, dtype=torch.uint8)
        target = torch.empty(expected, dtype=torch.int64)
        for name in self.files[split]:
            pixels, labels = self._read(where / name)
            stop = start + len(pixels)
            if stop > expected:
                break
            images[start:stop] = torch.from_numpy(pixels).view(-1, 3, 32, 32)
            target[start:stop] = torch.from_numpy(labels)
            start = stop
        if start != expected:
            raise UserError(
                f"{self.title}: {where} does not hold the {expected:,} {split} images; delete it to download again"
            )
        return Images(images, target)

    def _read(
        self, path: Path
    ) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
        """Pixels `(n, 3072)`, channel by channel, and labels `(n,)`."""
        content = read_arrays(path, self.title)
        try:
            pixels, labels = content["data"], np.asarray(content[self.labels_key], dtype=np.int64)
            sound = (
                pixels.dtype == np.uint8
                and pixels.shape == (len(labels), 3 * 32 * 32)
                and labels.ndim == 1
            )
            sound = sound and (
                not len(labels) or 0 <= labels.min() <= labels.max() < len(self.classes)
            )
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            raise UserError(
                f"{self.title}: {path} holds other things than images and labels; delete it to download it again"
            )
        return np.ascontiguousarray(pixels), labels

    def _download(self, where: Path) -> None:
        how = f"put torchvision's files there, or point --data.root or KD_DATA_ROOT to the folder that holds {self.folder}/"
        if not self.download:
            raise UserError(f"{self.title}: no data in {where} and download is off; {how}")
        from torchvision import datasets  # here, because torchvision's import is slow

        source = getattr(datasets, self.title.replace("-", ""))
        try:
            datasets.utils.download_and_extract_archive(
                source.url, self.root, filename=source.filename, md5=source.tgz_md5
            )
        except Exception as error:
            raise UserError(
                f"{self.title}: no data in {where}, and the download failed; {how}"
            ) from error
