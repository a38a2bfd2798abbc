"""The folder of the data sets, and checksums of their content."""

from __future__ import annotations

import hashlib
import os
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
