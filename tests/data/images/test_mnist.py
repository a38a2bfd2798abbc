"""MNIST: the real files where there are any, and one line for every way in which they can be missing or broken."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
import torchvision.datasets
from torch import Tensor

from kd_lightning.data import BatchLoader, MNISTDataModule
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN


def idx(*shape: int, payload: int | None = None, kind: int = 8) -> bytes:
    """A file in LeCun's IDX format: two zeros, the type (8: uint8), the dimensions, big-endian sizes, the data."""
    size = int(np.prod(shape)) if payload is None else payload
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + bytes(
        size
    )


def write_mnist(root: Path, train: int = 12, test: int = 12) -> Path:
    """torchvision's layout with as many black images, all zeros by their labels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", train), ("t10k", test)):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(n, 28, 28))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(n))
    return root


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_mnist(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> NoReturn:
        raise RuntimeError(
            "Error downloading train-images-idx3-ubyte.gz:\nTried a mirror, got:\nno route to host"
        )

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)


def complaint(root: Path, split: str = "train", *, download: bool = False) -> str:
    """The one line that loading ends with; it names the folder that the user has to look at."""
    with pytest.raises(UserError) as caught:
        MNISTDataModule(root=str(root), download=download).load(split)
    message = str(caught.value)
    assert "\n" not in message
    assert str(root / "MNIST" / "raw") in message
    return message


@pytest.fixture(scope="session")
def mnist(data_root: Path) -> MNISTDataModule:
    if not (data_root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST: {data_root} holds no MNIST/raw")
    return MNISTDataModule(root=str(data_root), download=False, batch_size=2000)


def test_the_real_splits(mnist: MNISTDataModule) -> None:
    for split, n in (("train", 60_000), ("test", 10_000)):
        raw = mnist.raw(split)
        assert (raw.images.shape, raw.images.dtype) == ((n, 1, 28, 28), torch.uint8)
        assert (raw.target.shape, raw.target.dtype) == ((n,), torch.int64)
        assert int(raw.target.min()) == 0
        assert bool(
            (torch.bincount(raw.target) > 0.08 * n).all()
        )  # ten classes of about a tenth
    held_out = sum(
        math.ceil(count / 10)
        for count in torch.bincount(mnist.raw("train").target).tolist()
    )
    assert mnist.spec.samples == {
        "train": 60_000 - held_out,
        "validation": held_out,
        "test": 10_000,
    }
    assert mnist.spec.input_shape == (1, 28, 28)


def test_a_real_batch_is_normalized(mnist: MNISTDataModule) -> None:
    loader = mnist.train_dataloader()
    assert isinstance(loader, BatchLoader)
    batch = next(iter(loader))
    assert isinstance(batch.inputs, Tensor)
    assert batch.inputs.shape == (2000, 1, 28, 28)
    assert batch.view == CLEAN
    # 2,000 images of 784 pixels: the batch's own mean and deviation are within a few hundredths of the split's.
    assert abs(float(batch.inputs.mean())) < 0.05
    assert abs(float(batch.inputs.std()) - 1) < 0.05
    pixels = mnist.raw("train").images[batch.index].double() / 255
    torch.testing.assert_close(
        batch.inputs.double(), (pixels - 0.1307) / 0.3081, atol=1e-5, rtol=0
    )


def test_the_constants_are_those_of_the_training_images(mnist: MNISTDataModule) -> None:
    pixels = mnist.raw("train").images.float() / 255
    assert abs(float(pixels.mean()) - mnist.mean[0]) < 1e-4
    assert abs(float(pixels.std()) - mnist.std[0]) < 1e-4


def test_no_data_and_no_download(tmp_path: Path) -> None:
    message = complaint(tmp_path)
    assert "download is off" in message
    assert "KD_DATA_ROOT" in message


@pytest.mark.usefixtures("no_network")
def test_no_data_and_no_network(tmp_path: Path) -> None:
    assert "the download failed" in complaint(tmp_path, download=True)


@pytest.mark.parametrize(
    ("split", "whole", "wanted"),
    [
        ("train", {}, "60,000 train"),
        ("test", {}, "10,000 test"),
        ("test", {"t10k-labels-idx1-ubyte": (10_000,)}, "10,000 test"),
        ("test", {"t10k-images-idx3-ubyte": (10_000, 28, 28)}, "10,000 test"),
        (
            "test",
            {
                "t10k-labels-idx1-ubyte": (10_000,),
                "t10k-images-idx3-ubyte": (10_000, 8, 8),
            },
            "10,000 test",
        ),
    ],
)
def test_another_number_of_images(
    tiny: Path, split: str, whole: dict[str, tuple[int, ...]], wanted: str
) -> None:
    for name, shape in whole.items():
        (tiny / "MNIST" / "raw" / name).write_bytes(idx(*shape))
    assert f"does not hold the {wanted} images" in complaint(tiny, split)


BROKEN = [
    pytest.param(idx(60_000, 28, 28, payload=12 * 28 * 28), id="truncated"),
    pytest.param(b"", id="empty"),
    pytest.param(idx(60_000, 28, 28, payload=0), id="header only"),
    pytest.param(b"<html>404 Not Found</html>", id="not IDX"),
    pytest.param(idx(12, 28, 28, payload=4 * 12 * 28 * 28, kind=0x0C), id="int32"),
    pytest.param(idx(12, 784), id="two dimensions"),
]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("content", BROKEN)
def test_a_corrupt_file_says_so(tiny: Path, content: bytes) -> None:
    (tiny / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    message = complaint(tiny)
    assert "cannot be read" in message
    assert "no data" not in message
    assert "does not hold the 10,000 test" in complaint(
        tiny, "test"
    )  # the other split's files are whole


def test_the_root_is_the_argument_else_the_environment_else_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KD_DATA_ROOT", "named")
    assert MNISTDataModule(root="given").root == Path("given")
    assert MNISTDataModule().root == Path("named")
    monkeypatch.delenv("KD_DATA_ROOT")
    assert MNISTDataModule().root == Path("data")
    assert MNISTDataModule(root="~/sets").root == Path.home() / "sets"
