"""CIFAR: small files byte for byte as Python 2 pickled the real ones, and pickles that want to run code."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torchvision.datasets

from kd_lightning.data import CIFAR10DataModule, CIFAR100DataModule
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN


class SmallCIFAR10(CIFAR10DataModule):
    samples = {"train": 50, "test": 10}  # noqa: RUF012


class SmallCIFAR100(CIFAR100DataModule):
    samples = {"train": 50, "test": 10}  # noqa: RUF012


def emitted(value: Any) -> bytes:
    """A value in the opcodes that Python 2's pickle writes at protocol 2; its strings are bytes."""
    match value:
        case bool() | None:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(emitted, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emitted, value)) + b"e"
        case dict():
            return (
                b"}("
                + b"".join(emitted(k) + emitted(v) for k, v in value.items())
                + b"u"
            )
        case np.ndarray():
            code, order = value.dtype.str[1:].encode(), value.dtype.str[:1].encode()
            dtype = (
                b"cnumpy\ndtype\n"
                + emitted((code, 0, 1))
                + b"R"
                + emitted((3, order, None, None, None, -1, -1, 0))
                + b"b"
            )
            empty = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
                + emitted((0,))
                + emitted(b"b")
                + b"tR"
            )
            state = (
                b"("
                + emitted(1)
                + emitted(value.shape)
                + dtype
                + emitted(False)
                + emitted(value.tobytes())
                + b"t"
            )
            return empty + state + b"b"
    raise TypeError(type(value))


def python2(content: dict[bytes, Any]) -> bytes:
    return b"\x80\x02" + emitted(content) + b"."


def pixels(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def write_cifar(root: Path) -> Path:
    """Both sets as they are unpacked, with 10 images a file, 50 in CIFAR-100's train."""
    ten, hundred = root / "cifar-10-batches-py", root / "cifar-100-python"
    ten.mkdir()
    hundred.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        files = [b"%d.png" % i for i in range(10)]
        labels = [(3 * i + seed) % 10 for i in range(10)]
        content = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": pixels(10, seed),
            b"filenames": files,
        }
        (ten / name).write_bytes(python2(content))
    for seed, (name, n) in enumerate((("train", 50), ("test", 10))):
        fine = [(7 * i + seed) % 100 for i in range(n)]
        content = {
            b"data": pixels(n, seed),
            b"fine_labels": fine,
            b"coarse_labels": [0] * n,
            b"batch_label": name.encode(),
        }
        (hundred / name).write_bytes(python2(content))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cifar(tmp_path)


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["latin1", "bytes"])
def test_the_files_of_these_tests_are_true_to_the_format(
    root: Path, encoding: str
) -> None:
    content = pickle.loads(
        (root / "cifar-10-batches-py" / "data_batch_2").read_bytes(), encoding=encoding
    )
    assert np.array_equal(
        content["data" if encoding == "latin1" else b"data"], pixels(10, 1)
    )


def test_cifar10_in_the_order_of_its_files(root: Path) -> None:
    data = SmallCIFAR10(root=str(root), download=False, validation=0.0)
    train, test = data.raw("train"), data.raw("test")
    assert (train.images.dtype, train.images.shape, test.images.shape) == (
        torch.uint8,
        (50, 3, 32, 32),
        (10, 3, 32, 32),
    )
    assert np.array_equal(train.images[10:20].flatten(1).numpy(), pixels(10, 1))
    assert train.target[10:20].tolist() == [(3 * i + 1) % 10 for i in range(10)]
    assert test.target.tolist() == [(3 * i + 5) % 10 for i in range(10)]
    batch = data.source("train").batch(torch.arange(50), CLEAN)
    expected = (
        train.images.double() / 255 - torch.tensor(data.mean)[:, None, None]
    ) / torch.tensor(data.std)[:, None, None]
    assert isinstance(batch.inputs, torch.Tensor)
    torch.testing.assert_close(batch.inputs.double(), expected, atol=1e-5, rtol=0)
    assert data.spec.input_shape == (3, 32, 32)


def test_cifar100_has_the_fine_labels(root: Path) -> None:
    data = SmallCIFAR100(root=str(root), download=False, validation=0.0)
    assert data.raw("train").target.tolist() == [(7 * i) % 100 for i in range(50)]
    assert np.array_equal(data.raw("test").images.flatten(1).numpy(), pixels(10, 1))
    assert len(set(data.classes)) == data.spec.num_classes == 100


def test_pickles_of_todays_python_are_read_too(root: Path) -> None:
    content = {"data": pixels(10, 9), "labels": [4] * 10}
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(
        pickle.dumps(content, protocol=4)
    )
    assert (
        SmallCIFAR10(root=str(root), download=False).load("test").target.tolist()
        == [4] * 10
    )


class Calls:
    """What a pickle looks like that calls a function when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    "function",
    [exec, eval, np.fromfile, np.frombuffer, Path],
    ids=["exec", "eval", "fromfile", "frombuffer", "Path"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_anything_is_refused(
    root: Path, function: Callable[..., object], protocol: int
) -> None:
    mark = root / "ran"
    content = {"data": Calls(function, f"open({str(mark)!r}, 'w')"), "labels": [0] * 10}
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(
        pickle.dumps(content, protocol)
    )
    message = complaint(
        lambda: SmallCIFAR10(root=str(root), download=False).load("test")
    )
    assert function.__name__ in message
    assert "could run code" in message
    assert "test_batch" in message
    assert not mark.exists()


DAMAGED = [
    pytest.param(b"", "cannot be read", id="empty"),
    pytest.param(b"<html>404 Not Found</html>", "cannot be read", id="no pickle"),
    pytest.param(
        python2({b"labels": [0] * 10})[:-20], "cannot be read", id="cut short"
    ),
    pytest.param(
        python2({b"labels": [0] * 10}),
        "does not hold images and labels",
        id="no images",
    ),
    pytest.param(
        python2({b"data": b"text", b"labels": [0] * 10}),
        "does not hold images and labels",
        id="no array",
    ),
    pytest.param(
        python2({b"data": pixels(10, 0), b"labels": [0] * 9}),
        "does not hold images and labels",
        id="a label missing",
    ),
    pytest.param(
        python2({b"data": pixels(10, 0), b"labels": [10] * 10}),
        "does not hold images and labels",
        id="no such class",
    ),
    pytest.param(
        python2({b"data": pixels(10, 0).astype(np.int16), b"labels": [0] * 10}),
        "does not hold images and labels",
        id="int16",
    ),
    pytest.param(
        python2({b"data": pixels(9, 0), b"labels": [0] * 9}),
        "does not hold the 10 test",
        id="too few",
    ),
    pytest.param(
        python2({b"data": pixels(11, 0), b"labels": [0] * 11}),
        "does not hold the 10 test",
        id="too many",
    ),
]


@pytest.mark.parametrize(("content", "said"), DAMAGED)
def test_a_damaged_file_says_so(root: Path, content: bytes, said: str) -> None:
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    message = complaint(
        lambda: SmallCIFAR10(root=str(root), download=False).load("test")
    )
    assert said in message
    assert str(root / "cifar-10-batches-py") in message


def test_the_real_sets_are_whole(root: Path) -> None:
    assert "does not hold the 50,000 train" in complaint(
        lambda: CIFAR10DataModule(root=str(root)).load("train")
    )
    assert "does not hold the 10,000 test" in complaint(
        lambda: CIFAR100DataModule(root=str(root)).load("test")
    )


@pytest.mark.parametrize("kind", [CIFAR10DataModule, CIFAR100DataModule])
def test_missing_files_are_downloaded_and_checked(
    kind: type[CIFAR10DataModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "download is off" in complaint(
        lambda: kind(root=str(tmp_path), download=False).load("train")
    )
    asked: list[dict[str, Any]] = []

    def refuse(url: str, where: Path, **options: Any) -> NoReturn:
        asked.append({"url": url, "where": where, **options})
        raise OSError("no route to host\nno route to host")

    monkeypatch.setattr(
        torchvision.datasets.utils, "download_and_extract_archive", refuse
    )
    assert "the download failed" in complaint(
        lambda: kind(root=str(tmp_path)).load("train")
    )
    [call] = asked
    assert call["filename"] == f"{kind.title.lower()}-python.tar.gz"
    assert call["url"].endswith(call["filename"])
    assert len(call["md5"]) == 32
    assert call["where"] == tmp_path
