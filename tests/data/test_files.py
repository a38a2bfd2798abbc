"""What a failed download leaves on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.data import MNISTDataModule
from kd_lightning.data.files import no_empty_folders
from kd_lightning.errors import UserError


def fail_to_download(folder: Path, *files: str) -> None:
    """Write these files, then fail."""
    with no_empty_folders(folder):
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
        raise RuntimeError


def test_a_failed_download_leaves_no_empty_folders(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "MNIST" / "raw"
    with pytest.raises(RuntimeError):
        fail_to_download(folder)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_hold_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "MNIST" / "raw"
    (tmp_path / "data").mkdir()
    with pytest.raises(RuntimeError):
        fail_to_download(folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "data"]
    with pytest.raises(RuntimeError):
        fail_to_download(folder, "part")
    assert (folder / "part").exists()


def test_mnist_without_a_network_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def download(dataset: datasets.MNIST) -> None:
        Path(dataset.raw_folder).mkdir(parents=True)
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(UserError, match="the download failed"):
        MNISTDataModule(root=str(tmp_path / "data")).load("train")
    assert list(tmp_path.iterdir()) == []
