"""What makes a run lean, besides its modules."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING: AbstractContextManager[Any] = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Lightning's own "no profiler" makes a generator for each of the 30 actions of a step; this one makes nothing."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return _NOTHING


def keep_memory() -> bool:
    """Let memory that was freed stay with this process; False where the system's allocator cannot be told.

    glibc gives large blocks back to the system as they are freed, and a step that asks for them again waits until each of their
    pages is cleared. What a process holds then is what it once needed, which at the next step it needs again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold = -3, -1  # as malloc.h numbers them
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))
