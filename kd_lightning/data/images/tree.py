"""The files of a folder, or of a zip of a folder."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.errors import UserError

Stamp = tuple[int, int]
"""Changes with a file's content: (size, time of modification), or (size, CRC-32) in a zip."""


@dataclass
class Tree:
    """The files of a folder or a zip, without hidden files.

    Attributes:
        path: path of the folder or the zip.
        files: stamp of each file by its name relative to the top, with `/` between folders.
        folders: names of all known folders, including empty ones.
        read: returns the bytes of a file by name; may be called from several threads.
    """

    path: Path
    files: dict[str, Stamp]
    folders: set[str]
    read: Callable[[str], bytes]


def open_tree(path: Path) -> Tree:
    """Open a folder or a zip.

    If everything lies in a single folder at the top, names are relative to that folder.

    Raises:
        UserError: if there is neither, or it cannot be read.
    """
    if path.is_dir():
        return _without_single_top(_open_folder(path))
    if path.is_file():
        return _without_single_top(_open_zip(path))
    raise UserError(
        f"there is no folder or zip {path}; set --data.path, and --data.root or KD_DATA_ROOT "
        "if it is relative"
    )


def _without_single_top(tree: Tree) -> Tree:
    """The tree below its only top folder; the tree itself if it has another layout."""
    tops: set[str] = set()
    for name in (*tree.files, *tree.folders):
        top, _, _ = name.partition("/")
        tops.add(top)
    if len(tops) != 1:
        return tree
    (top,) = tops
    # A lone `train` is part of the layout, and a file is no folder.
    if top == "train" or top in tree.files:
        return tree
    start = len(top) + 1
    files = {name[start:]: stamp for name, stamp in tree.files.items()}
    folders = {name[start:] for name in tree.folders}
    # The top folder itself has no name left.
    folders.discard("")
    return Tree(tree.path, files, folders, lambda name: tree.read(f"{top}/{name}"))


def _open_folder(path: Path) -> Tree:
    files: dict[str, Stamp] = {}
    folders: set[str] = set()
    try:
        _scan(str(path), "", files, folders)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return Tree(path, files, folders, lambda name: (path / name).read_bytes())


def _scan(folder: str, prefix: str, files: dict[str, Stamp], folders: set[str]) -> None:
    """Add all that lies below `folder` to `files` and `folders`, with `prefix` before its names."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.add(name)
                _scan(entry.path, f"{name}/", files, folders)
            else:
                status = entry.stat()
                files[name] = (status.st_size, status.st_mtime_ns)


def _open_zip(path: Path) -> Tree:
    try:
        # Given an open file, because a file that ZipFile opens itself is not closed thread-safely.
        archive = zipfile.ZipFile(path.open("rb"))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is neither a folder nor a complete zip file; is the copy complete?"
        ) from error
    files: dict[str, Stamp] = {}
    folders: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        # Hidden files, and the metadata that macOS adds.
        if "/." in f"/{name}" or name.startswith("__MACOSX/"):
            continue
        if not info.is_dir():
            files[name] = (info.file_size, info.CRC)
        # A zip need not list folders, so they are inferred from the names.
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return Tree(path, files, folders, archive.read)
