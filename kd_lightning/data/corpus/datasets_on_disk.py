"""Corpora that the package datasets of Hugging Face wrote with `save_to_disk`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.hub import library

_STATE = "state.json"
_SPLITS = "dataset_dict.json"


def is_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, as one data set or as several splits."""
    return (path / _STATE).is_file() or (path / _SPLITS).is_file()


def read_rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set, one at a time; its files are memory-mapped.

    Args:
        folder: written by `save_to_disk`.

    Raises:
        UserError: if the package datasets is not installed, the data set cannot be read, or the
            folder holds several splits.
    """
    if (folder / _SPLITS).is_file():
        parts = [child.name for child in sorted(folder.iterdir()) if is_dataset(child)]
        example = parts[0] if parts else "train"
        raise UserError(
            f"{folder} holds several data sets ({', '.join(parts)}); name one of them, such as "
            f"{folder / example}"
        )
    load_from_disk = library("datasets").load_from_disk
    try:
        rows = load_from_disk(str(folder))
    except Exception as error:
        # The package and the libraries below it raise errors of many kinds.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be read: {reason}") from error
    yield from rows


def sha256_of_dataset(folder: Path) -> str:
    """A checksum of the content of a data set.

    Args:
        folder: written by `save_to_disk`.

    Raises:
        OSError: if a file cannot be read.
    """
    total = hashlib.sha256()
    # Their names give the order of the rows.
    for file in sorted(folder.glob("*.arrow")):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
