"""Opens the tables of a cache, and verifies all of its files."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.codec import Codec
from kd_lightning.teachers.cache.manifest import Manifest
from kd_lightning.teachers.cache.table import Table
from kd_lightning.types import CLEAN


def table_name(split: str, view: int) -> str:
    """The name of the table that holds the outputs of one split in one view.

    Args:
        split: of the source, such as "train".
        view: which draw of the augmentation; `CLEAN` for none.
    """
    name = "clean" if view == CLEAN else str(view)
    return f"{split}/{name}"


def open_tables(manifest: Manifest, mapped: bool) -> dict[str, Table]:
    """All tables of a cache by name.

    Args:
        manifest: of the cache.
        mapped: whether to memory-map their files.

    Raises:
        UserError: if the cache is not complete, or a file is missing.
    """
    tables = {}
    for name in manifest.content["tables"]:
        tables[name] = Table(manifest, name, mapped)
    if not tables:
        raise UserError(
            f"the teacher cache {manifest.folder} is not complete; run the same kd cache command "
            "again to complete it"
        )
    return tables


def verify_cache(folder: str | Path) -> int:
    """Check the content of every file of a cache against its checksum.

    Args:
        folder: of the cache.

    Returns:
        The number of bytes that were checked.

    Raises:
        UserError: if a file is missing, damaged or altered, or the cache is not complete.
    """
    manifest = Manifest.read(Path(folder).expanduser())
    # Each raises if its part of the manifest is damaged.
    Codec.of(manifest)
    manifest.data()
    manifest.teachers()
    # Read and not mapped: each file is needed once.
    for name, table in open_tables(manifest, mapped=False).items():
        manifest.rows(name)
        table.verify()
    return manifest.bytes
