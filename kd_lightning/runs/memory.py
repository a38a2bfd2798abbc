"""How this process handles memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
"""Parameters of mallopt, as malloc.h numbers them."""


def keep_memory() -> bool:
    """Keep freed memory in this process instead of returning it to the system.

    glibc returns large blocks as soon as they are freed. The next step asks for them again and
    waits until the system has cleared every page. The setting holds for the whole process and
    cannot be undone.

    Returns:
        Whether it took effect; only glibc has this setting.
    """
    if sys.platform != "linux":
        return False
    # musl has no such function.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    keeps_blocks = bool(mallopt(_MMAP_THRESHOLD, 2**30))
    keeps_heap = bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return keeps_blocks and keeps_heap
