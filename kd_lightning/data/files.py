"""The folder of the data sets, checksums of their content, and what failed downloads leave."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor


def checksum(*tensors: Tensor) -> str:
    """The sha256 over the shapes, dtypes and bytes of CPU tensors of any shape."""
    digest = hashlib.sha256()
    for tensor in tensors:
        header = (tuple(tensor.shape), str(tensor.dtype))
        digest.update(repr(header).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def data_root(root: str | None) -> Path:
    """The folder of the data sets: `root` if given, else `KD_DATA_ROOT`, else `./data`."""
    return Path(root or os.environ.get("KD_DATA_ROOT") or "data").expanduser()


@contextlib.contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove the folders that a failed download has made and left empty.

    Args:
        folder: that the download fills; its parents are removed too, unless they were there.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            # A folder that holds part of a download is not empty, and stays.
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
