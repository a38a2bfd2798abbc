"""Decides which exported programs may be loaded: loading one can run code that it contains.

torch reads some parts of a `.pt2` archive as pickles and others as Python expressions, and a shared
library is machine code. A folder of `kd export` may come from a stranger, so that a program is
loaded only if this user's `kd export` wrote it, or if the user trusts it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from kd_lightning.data.images.image_cache import cache_root
from kd_lightning.errors import UserError
from kd_lightning.trust import is_allowed
from kd_lightning.weights import sha256_of

_made: set[str] = set()
"""Checksums of the programs that this process wrote."""


def remember(program: Path) -> None:
    """Note that this user made a program, so that later commands load it.

    Args:
        program: the file, complete.
    """
    checksum = sha256_of(program)
    _made.add(checksum)
    # A folder that cannot be written costs the user an option in later commands, and no export.
    with contextlib.suppress(OSError):
        marker = _marker(checksum)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def check(program: Path, what: str, trust: str) -> None:
    """Refuse a program that somebody else may have made.

    Args:
        program: the file. A missing one passes, because loading it reports that.
        what: the file's content, for the message.
        trust: the name that `--trust` takes for such programs.

    Raises:
        UserError: if the program is neither this user's own nor trusted.
    """
    if not program.is_file() or is_allowed(f"{trust}.package"):
        return
    checksum = sha256_of(program)
    if checksum in _made or _marker(checksum).is_file():
        return
    raise UserError(
        f"{program.parent} holds {what}, which can run any code, and was not exported here; if you "
        f"trust where it comes from, repeat the command with --trust {trust}"
    )


def _marker(checksum: str) -> Path:
    """The empty file that stands for a program of this user."""
    return cache_root(None) / "exports" / checksum
