"""Checks that a file holds weights, and is whole, before its content is read."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of weights, as far as a look at it shows; `None` if nothing is.

    The zip holds a CRC-32 of each record, which finds every single flipped bit. torch does not
    compare it when it reads the file. Only files in torch's format before version 1.6 have none.

    Args:
        path: of the file.
    """
    kind = _other_kind_of(path)
    if kind is not None:
        return kind
    if not zipfile.is_zipfile(path):
        return "it is corrupt" if _starts_as_zip(path) else None
    try:
        with zipfile.ZipFile(path) as archive:
            return _damage_of(archive, path.stat().st_size)
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ):
        return "it is corrupt"


def _damage_of(archive: zipfile.ZipFile, file_bytes: int) -> str | None:
    records = archive.infolist()
    # torch stores records uncompressed. Compressed or overlapping ones can declare any size.
    declared_bytes = sum(record.file_size for record in records)
    if declared_bytes > file_bytes:
        return f"it declares {declared_bytes:,} bytes of content in a file of {file_bytes:,} bytes"
    if not any(record.CRC for record in records):
        # Written with torch.serialization.set_crc32_options(False), so there are no checksums.
        return None
    damaged = archive.testzip()
    if damaged is not None:
        return f"it is corrupt: the checksum of its record {damaged!r} differs"
    return None


def _other_kind_of(path: Path) -> str | None:
    """What a file is that a failed download left in place of weights; `None` if it is no such file."""
    # A file that cannot be opened is reported by whoever reads all of it.
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch its content with git lfs pull"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file; download it again"
    return None


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
