"""The files of a cache folder: whole or absent, written by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from kd_lightning.errors import UserError

try:
    import fcntl
except ImportError:
    # Windows has no such locks: two writers then write equal files twice.
    fcntl = None  # type: ignore[assignment]

MANIFEST_NAME = "manifest.json"

_OWN_FILE = r"(manifest\.json|\w+\.view(clean|\d+)\.(\d{5}\.bin|rows\.npy))"
_OWN = re.compile(rf"{_OWN_FILE}|\.{_OWN_FILE}\.\d+")
_TEMPORARY = re.compile(rf"\.{_OWN_FILE}\.(?P<process>\d+)")


def shard_file(table: str, number: int) -> str:
    """The name of a shard's file.

    Args:
        table: `split/view`.
        number: of the shard.
    """
    return f"{table.replace('/', '.view')}.{number:05d}.bin"


def rows_file(table: str) -> str:
    """The name of the file of a table's row numbers."""
    return f"{table.replace('/', '.view')}.rows.npy"


def is_own_file(name: str) -> bool:
    """Whether a file of this name belongs to a cache, finished or not."""
    return _OWN.fullmatch(name) is not None


def create_folder(folder: Path) -> None:
    """Create the folder of a cache and its parents, unless they exist.

    Raises:
        UserError: if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}); choose another --output"
        ) from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears under its name only once all data is on the disk.

    Raises:
        UserError: if the disk is full or the file cannot be written; nothing is left of it then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); the cache's complete files stay valid: "
            "make room, and run the same kd cache command again"
        ) from error
    finally:
        # The file is gone if it was renamed, which is the rule.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a cache folder as its only writer, and remove what killed writers left in it.

    The system releases the lock when the process ends, however it ends.

    Raises:
        UserError: if another process writes the cache, or the folder cannot be created.
    """
    create_folder(folder)
    # The lock is one of the folder itself, so that no lock file lies in the cache.
    descriptor = -1
    if fcntl is not None:
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            _lock(descriptor, folder)
        _remove_leftovers(folder)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Lock a folder for this process, where the file system can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks. Writing is atomic and repeatable without them.
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return
        raise UserError(
            f"another kd cache is writing {folder}; wait until it has finished, or choose another "
            "--output"
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that no longer run."""
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not _runs(int(match["process"])):
            with contextlib.suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether another process of this number runs."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # It belongs to another user.
        return True
    return True


def check_space(folder: Path, needed: int, described: str) -> None:
    """Check that a cache fits on the disk, before anything is computed.

    Args:
        folder: folder of the cache, which need not exist.
        needed: bytes of the whole cache. What the folder holds already counts towards them.
        described: where the size comes from, for the message.

    Raises:
        UserError: if the disk has less free space.
    """
    stored = 0
    for path in folder.glob("*.bin"):
        stored += path.stat().st_size
    # The nearest folder that exists lies on the same disk.
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed - stored > free:
        raise UserError(
            f"the cache {folder} needs {needed / 1e6:,.1f} MB ({described}), and its disk has "
            f"{free / 1e6:,.1f} MB free; use fewer --views, a smaller --top-k, --dtype fp16, or "
            "another --output"
        )
