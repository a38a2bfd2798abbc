"""One process at a time trains into a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.values import Value, Values

LOCK = ".lock"
"""The lock file of a run's folder. It names the process that trains into the folder."""

_TRIES = 3
"""How often a lock is requested if another process removes the same stale lock."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    A lock that a killed process left behind is removed. Whether a process on another machine is
    alive is unknown, so its lock is respected.

    Args:
        folder: an existing folder.

    Raises:
        UserError: if another process trains into the folder.
    """
    path = folder / LOCK
    _acquire(path)
    try:
        yield
    finally:
        # The folder may have been deleted, or the file system may be read-only by now.
        with contextlib.suppress(OSError):
            path.unlink()


def in_use(folder: Path) -> bool:
    """Whether another process holds the lock of a run's folder."""
    return _is_alive(_read(folder / LOCK))


def _acquire(path: Path) -> None:
    own = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _start_of(os.getpid()),
    }
    for _ in range(_TRIES):
        try:
            # Fails if the file exists, so that of two processes only one succeeds.
            with path.open("x") as file:
                json.dump(own, file)
            return
        except FileExistsError:
            holder = _read(path)
        except OSError as error:
            raise UserError(
                f"cannot write the run's folder {path.parent} ({error.strerror}); "
                "choose another --run.root or --run.dir"
            ) from error
        if _is_alive(holder):
            raise UserError(
                f"{path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}; "
                f"wait for it or choose another folder (delete {path} if that process is gone)"
            )
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    raise UserError(f"{path.parent} is in use by another process; wait for it")


def _read(path: Path) -> dict[str, Value]:
    """The holder of a lock; empty if the file is gone, or was cut by a kill."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return content


def _is_alive(holder: Values) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        # Signal 0 only asks whether the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It exists, but belongs to another user.
        pass
    # A later process may have the same number, but not the same start.
    return holder.get("started") == _start_of(pid)


def _start_of(pid: int) -> str | None:
    """When a process started, in the system's own units; None where this is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The program's name, in parentheses, may hold spaces. The start is the 22nd field.
    fields = stat.rpartition(")")[2].split()
    return fields[19]
