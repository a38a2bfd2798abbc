"""Writes files so that a reader finds either the whole new file or the whole old one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview, durable: bool = True) -> None:
    """Write a file that appears under its name only once all data is written.

    The temporary file `.NAME.PID` lies in the same folder, because moving a file to another file
    system copies it, and a process that dies during the copy leaves half a file. A durable
    write first removes the temporary files of processes that were killed.

    Args:
        path: of the file; its folder exists.
        data: the whole content.
        durable: wait until the disk has the data, so that the old or the new file is whole even
            after a power cut. If only the process ends, one of them always is.

    Raises:
        OSError: if the file cannot be written, as on a full disk. The old file is untouched then.
    """
    if durable:
        # Not for the many small writes of a log: listing the folder takes longer than the write.
        remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # A partial file must not keep the space of a full disk, nor outlive Ctrl-C.
        temporary.unlink(missing_ok=True)
        raise


def write_whole_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file in UTF-8; see `write_whole`.

    Raises:
        OSError: if the file cannot be written. The old file is untouched then.
    """
    write_whole(path, text.encode(), durable)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of this file whose writing process was killed.

    Args:
        path: of the file that the processes were writing.
    """
    prefix = f".{path.name}."
    with contextlib.suppress(OSError):
        for candidate in path.parent.iterdir():
            process = candidate.name.removeprefix(prefix)
            if process == candidate.name or not process.isdecimal():
                continue
            if not _is_alive(int(process)):
                candidate.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # It exists and belongs to another user.
        return True
    return True
