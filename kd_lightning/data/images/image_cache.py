"""Images decoded once into memory-mapped uint8 files, shared by all processes and runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.images.files import Listing, Tree
from kd_lightning.errors import UserError

VERSION = 1
"""Of what a cache holds: part of its name, so that what other versions wrote is not read."""

_CHUNK = 256
_SPLITS = ("train", "test")

Pixels = NDArray[np.uint8]


@dataclass
class Decoded:
    """What a cache holds.

    Attributes:
        images: of "train" and "test": uint8 `(N, C, H, W)`, memory-mapped.
        mean, std: of the training images' pixels in [0, 1], a number a channel.
    """

    images: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_root(cache: str | None) -> Path:
    """Where caches lie: the argument, else `KD_CACHE`, else `~/.cache/kd_lightning`."""
    return Path(cache or os.environ.get("KD_CACHE") or "~/.cache/kd_lightning").expanduser()


def fingerprint(tree: Tree, listing: Listing, size: int | None, grey: bool) -> str:
    """A name for what decoding gives: a function of the files' names, sizes and stamps, wherever they lie."""
    files = [(name, *tree.files[name]) for split in _SPLITS for name in listing.files[split]]
    return hashlib.sha256(json.dumps([VERSION, size, grey, files]).encode()).hexdigest()[:32]


def decoded(
    tree: Tree, listing: Listing, size: int | None, grey: bool, cache: str | None
) -> Decoded:
    """The decoded images, from the cache where they are in it. Of several processes that ask at once one decodes.

    Args:
        tree, listing: the images.
        size: resize the shorter side to this, and cut out the square in the middle; `None`: all have one size.
        grey: decode to one channel instead of three.
        cache: see cache_root.

    Raises:
        UserError: for an image that cannot be read or has another size, and a cache that cannot be written.
    """
    from filelock import FileLock

    folder = cache_root(cache) / "images" / fingerprint(tree, listing, size, grey)
    if (found := _opened(folder, listing)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if (found := _opened(folder, listing)) is not None:  # another process was quicker
                return found
            _write(folder, tree, listing, lambda name: _pixels(tree, name, size, grey))
    except OSError as error:
        how = "set --data.cache or KD_CACHE to a folder with room for the decoded images"
        raise UserError(
            f"the image cache {folder.parent} cannot be written ({error.strerror}); {how}"
        ) from error
    found = _opened(folder, listing)
    assert found is not None
    return found


def _opened(folder: Path, listing: Listing) -> Decoded | None:
    """The cache in a folder; None where there is none, or none that is whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        # Copy on write, because torch has no read-only tensors; nothing is written.
        arrays = {
            split: np.load(folder / f"{split}.npy", mmap_mode="c", allow_pickle=False)
            for split in _SPLITS
        }
        if any(len(arrays[split]) != len(listing.files[split]) for split in _SPLITS):
            return None
        return Decoded(
            {s: torch.from_numpy(a) for s, a in arrays.items()},
            tuple(about["mean"]),
            tuple(about["std"]),
        )
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(folder: Path, tree: Tree, listing: Listing, pixels: Callable[[str], Pixels]) -> None:
    """Decode into a folder of another name, which gets its own when it is whole. The caller holds the lock."""
    for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    first = listing.files["train"][0]
    shape = pixels(first).shape

    def checked(name: str) -> Pixels:
        found = pixels(name)
        if found.shape != shape:
            sizes = [f"{n} is {w}x{h}" for n, (_, h, w) in ((first, shape), (name, found.shape))]
            raise UserError(
                f"{tree.path}: images of different sizes ({', '.join(sizes)}); set --data.size to make them alike"
            )
        return found

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        counts = np.zeros((shape[0], 256), dtype=np.int64)
        with _progress(
            sum(len(files) for files in listing.files.values()), tree.path, folder
        ) as advance:
            for split in _SPLITS:
                files = listing.files[split]
                with (temporary / f"{split}.npy").open("wb") as out:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
                    np.lib.format.write_array_header_1_0(out, header)
                    for chunk in _chunks(files, checked):
                        out.write(chunk.data)
                        advance(len(chunk))
                        if split == "train":
                            counts += [
                                np.bincount(chunk[:, c].ravel(), minlength=256)
                                for c in range(shape[0])
                            ]
                    _settle(out)
        with (temporary / "about.json").open("wb") as out:
            mean, std = _statistics(counts)
            out.write(json.dumps({"source": tree.path.name, "mean": mean, "std": std}).encode())
            _settle(out)
        if folder.exists():  # a cache that is not whole
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(file: BinaryIO) -> None:
    """On the disk before the name is: no crash leaves the name of a file without its content."""
    file.flush()
    os.fsync(file.fileno())


def _chunks(files: list[str], pixels: Callable[[str], Pixels]) -> Iterator[Pixels]:
    """The files' images in order, `(n, C, H, W)` at a time, decoded by several threads a few chunks ahead."""

    def stacked(names: list[str]) -> Pixels:
        return np.stack([pixels(name) for name in names])

    workers = min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(workers), deque[Future[Pixels]]()
    try:
        for start in range(0, len(files), _CHUNK):
            ahead.append(pool.submit(stacked, files[start : start + _CHUNK]))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(tree: Tree, name: str, size: int | None, grey: bool) -> Pixels:
    """One image, `(C, H, W)`."""
    from PIL import Image
    from torchvision.transforms.v2 import (
        functional as v2,
    )  # here, because torchvision's import is slow

    try:
        with Image.open(io.BytesIO(tree.read(name))) as file:
            image = file.convert("L" if grey else "RGB")
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise UserError(
            f"{tree.path}: {name} cannot be read as an image; is the copy complete?"
        ) from error
    if size is not None:
        image = v2.center_crop(v2.resize(image, [size]), [size, size])
    array: Pixels = np.asarray(image, dtype=np.uint8)
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _statistics(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of how often it has each value `(C, 256)`, to four decimals."""
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    # A channel of a single value has no deviation to divide by.
    return [round(float(m), 4) for m in mean], [round(float(s), 4) or 1.0 for s in std]


@contextlib.contextmanager
def _progress(total: int, source: Path, folder: Path) -> Iterator[Callable[[int], Any]]:
    """A bar with time left; in a log file, one line."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if not console.is_terminal:
        console.print(
            f"decoding the {total:,} images of {source} once, into {folder}",
            highlight=False,
            soft_wrap=True,
        )
        yield lambda count: None
        return
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"decoding {source.name}", total=total)
        yield lambda count: bar.advance(task, count)
