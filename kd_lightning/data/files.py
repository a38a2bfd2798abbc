"""Where data sets lie, and checksums of what they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from torch import Tensor


def checksum(*tensors: Tensor) -> str:
    """sha256 over shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def data_root(root: str | None) -> Path:
    """Where data sets lie: the argument, else `KD_DATA_ROOT`, else `./data`."""
    return Path(root or os.environ.get("KD_DATA_ROOT") or "data").expanduser()
