"""Caches decoded images in memory-mapped uint8 files that all processes and runs share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.images.decoding import (
    ChannelStatistics,
    Pixels,
    decode_chunks,
    decode_image,
)
from kd_lightning.data.images.listing import Listing
from kd_lightning.data.images.picture import DECODER_VERSION
from kd_lightning.data.images.tree import Tree
from kd_lightning.errors import UserError, printable
from kd_lightning.escaping import plain

VERSION = 1
"""Version of the format. It is part of a cache's name, so other versions are never read."""


@dataclass
class Decoded:
    """The content of a cache.

    Attributes:
        images: uint8 `(N, C, H, W)`, memory-mapped, for "train" and "test".
        mean: mean of the pixels in [0, 1] of the folder `train`, per channel.
        std: standard deviation of the same pixels, per channel.
    """

    images: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_root(cache: str | None) -> Path:
    """The folder of all caches: `cache` if given, else `KD_CACHE`, else `~/.cache/kd_lightning`."""
    return Path(
        cache or os.environ.get("KD_CACHE") or "~/.cache/kd_lightning"
    ).expanduser()


def fingerprint(tree: Tree, listing: Listing, size: int | None, grey: bool) -> str:
    """The name of a cache: a function of the options, the files' names and stamps, and the decoder.

    It does not depend on the path of the tree.
    """
    files: list[tuple[str, int, int]] = []
    for names in listing.files.values():
        for name in names:
            files.append((name, *tree.files[name]))
    # Everything that decides the pixels, and nothing else.
    content = json.dumps(
        [VERSION, DECODER_VERSION, size, grey, listing.num_train, files]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def decoded(
    tree: Tree,
    listing: Listing,
    size: int | None,
    grey: bool,
    cache: str | None,
) -> Decoded:
    """The decoded images, read from the cache if they are in it.

    If several processes call this at once, one of them decodes and the others wait.

    Args:
        tree: the tree that holds the images.
        listing: the images.
        size: resize the shorter side to this and crop the central square; `None`: all images have
            one size.
        grey: decode to one channel instead of three.
        cache: folder of all caches, see `cache_root`.

    Raises:
        UserError: if an image cannot be read or differs in size, or the cache cannot be written.
    """
    from filelock import FileLock

    key = fingerprint(tree, listing, size, grey)
    folder = cache_root(cache) / "images" / key
    content = _open(folder, listing)
    if content is not None:
        return content
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            # Another process may have written the cache while this one waited for the lock.
            content = _open(folder, listing)
            if content is not None:
                return content
            _write(
                folder, tree, listing, lambda name: decode_image(tree, name, size, grey)
            )
    except OSError as error:
        raise UserError(
            f"the image cache {folder.parent} cannot be written ({error.strerror}); "
            "set --data.cache or KD_CACHE to a folder with room for the decoded images"
        ) from error
    content = _open(folder, listing)
    assert content is not None
    return content


def _stored_splits(listing: Listing) -> tuple[str, ...]:
    """The source splits that have a file of their own in a cache."""
    # Without a folder `test`, the test images are the last ones of "train".
    if listing.test_folder == listing.validation_folder:
        return ("train",)
    return ("train", "test")


def _open(folder: Path, listing: Listing) -> Decoded | None:
    """The cache in a folder, or None if it is missing or incomplete."""
    try:
        about = json.loads((folder / "about.json").read_text())
        images = {}
        for split in _stored_splits(listing):
            # Copy on write, because torch has no read-only tensors. Nothing is ever written.
            array = np.load(folder / f"{split}.npy", mmap_mode="c", allow_pickle=False)
            if len(array) != len(listing.files[split]) or array.dtype != np.uint8:
                return None
            images[split] = torch.from_numpy(array)
        images.setdefault("test", images["train"][listing.num_train :])
        return Decoded(images, tuple(about["mean"]), tuple(about["std"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write(
    folder: Path,
    tree: Tree,
    listing: Listing,
    decode: Callable[[str], Pixels],
) -> None:
    """Decode all images into a temporary folder, and rename it once it is complete.

    The caller holds the lock.
    """
    # Leftovers of processes that were killed.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    first = listing.files["train"][0]
    shape = decode(first).shape

    def decode_checked(name: str) -> Pixels:
        pixels = decode(name)
        if pixels.shape != shape:
            raise UserError(
                f"{tree.path}: images of different sizes ({first} is {_size(shape)}, "
                f"{name} is {_size(pixels.shape)}); set --data.size to resize them"
            )
        return pixels

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        splits = _stored_splits(listing)
        total = sum(len(listing.files[split]) for split in splits)
        with _progress(total, tree.path, folder) as advance:
            statistics = _write_splits(
                temporary, listing, shape, decode_checked, advance
            )
        mean, std = statistics.compute()
        about = {"source": tree.path.name, "mean": mean, "std": std}
        with (temporary / "about.json").open("wb") as file:
            file.write(json.dumps(about).encode())
            _sync(file)
        # `_open` found an existing folder to be incomplete.
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _size(shape: tuple[int, ...]) -> str:
    _, height, width = shape
    return f"{width}x{height}"


def _write_splits(
    folder: Path,
    listing: Listing,
    shape: tuple[int, ...],
    decode: Callable[[str], Pixels],
    advance: Callable[[int], None],
) -> ChannelStatistics:
    """Write the images of each split to a file; returns the statistics of the folder `train`."""
    statistics = ChannelStatistics(shape[0])
    for split in _stored_splits(listing):
        files = listing.files[split]
        path = folder / f"{split}.npy"
        # Images of the folder `train` that the statistics lack; they come first.
        missing = listing.num_train if split == "train" else 0
        for chunk in _write_images(path, shape, files, decode):
            advance(len(chunk))
            statistics.update(chunk[:missing])
            missing = max(0, missing - len(chunk))
    return statistics


def _write_images(
    path: Path,
    shape: tuple[int, ...],
    names: list[str],
    decode: Callable[[str], Pixels],
) -> Iterator[Pixels]:
    """Write images of one shape to an npy file chunk by chunk; yields each chunk once written."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decode_chunks(names, decode):
            file.write(chunk.data)
            yield chunk
        _sync(file)


def _sync(file: BinaryIO) -> None:
    """Force the content to disk, so that a crash cannot leave a renamed file without content."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _progress(
    total: int,
    source: Path,
    folder: Path,
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar in a terminal, and print one line elsewhere.

    Yields:
        A function to call with the number of images done since the last call.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console()
    if not console.is_terminal:
        message = f"decoding the {total:,} images of {source} once, into {folder}"
        console.print(plain(message), soft_wrap=True)
        yield lambda count: None
        return
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"decoding {escape(printable(source.name))}", total=total)
        yield lambda count: bar.advance(task, count)
