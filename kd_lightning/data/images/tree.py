"""The files of a folder, or of a zip of a folder."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.errors import UserError

Stamp = tuple[int, int]
"""Changes with a file's content: (size, time of modification), or (size, CRC-32) in a zip."""


MAX_FILE_BYTES = 2**29
"""The most bytes of a file that is read as a whole: 512 MiB."""

_ODD_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass
class Tree:
    """The files of a folder or a zip, without hidden files.

    Attributes:
        path: path of the folder or the zip.
        files: stamp of each file by its name relative to the top, with `/` between folders.
        folders: names of all known folders, including empty ones.
        read: returns the bytes of a file by name; may be called from several threads. It raises
            UserError for a file of more than `MAX_FILE_BYTES`, before reading it.
    """

    path: Path
    files: dict[str, Stamp]
    folders: set[str]
    read: Callable[[str], bytes]


def open_tree(path: Path, keep_top: bool = False) -> Tree:
    """Open a folder or a zip.

    Args:
        path: of the folder or the zip.
        keep_top: names are always relative to the path. Otherwise, if everything lies in a single
            folder at the top, names are relative to that folder.

    Raises:
        UserError: if there is neither, or it cannot be read.
    """
    if path.is_dir():
        tree = _open_folder(path)
        return tree if keep_top else _without_single_top(tree)
    if path.is_file():
        tree = _open_zip(path)
        return tree if keep_top else _without_single_top(tree)
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
    try:
        files, folders = _scan(path)
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror}"
        ) from error
    return Tree(path, files, folders, lambda name: read_regular(path / name))


def _scan(path: Path) -> tuple[dict[str, Stamp], set[str]]:
    """The files and folders below a folder; see Tree."""
    files: dict[str, Stamp] = {}
    folders: set[str] = set()
    # A stack, because nested folders can exceed the depth of Python's recursion. The last entry of
    # each element identifies the folder and all folders that contain it.
    start = (str(path), "", frozenset({_identity(str(path))}))
    pending = [start]
    while pending:
        folder, prefix, ancestors = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    status = _regular_status(entry.path)
                    files[name] = (status.st_size, status.st_mtime_ns)
                    continue
                identity = _identity(entry.path)
                if identity in ancestors:
                    raise UserError(
                        f"{entry.path} is a link to a folder that contains it"
                    )
                folders.add(name)
                pending.append((entry.path, f"{name}/", ancestors | {identity}))
    return files, folders


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _regular_status(path: str) -> os.stat_result:
    """The status of a file.

    Raises:
        UserError: if it is no regular file; reading a pipe or a device might never end.
    """
    remedy = "remove it, or put the file itself in its place"
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is a link to a file that does not exist; {remedy}"
        ) from error
    kind = _ODD_FILES.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise UserError(f"{path} is or links to {kind}, not a regular file; {remedy}")
    return status


def read_regular(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: if it is no regular file, has more than `MAX_FILE_BYTES`, or cannot be read.
    """
    try:
        status = _regular_status(str(path))
        _check_bytes(status.st_size, str(path))
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _check_bytes(size: int, owner: str) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{owner} has {size:,} bytes, more than the {MAX_FILE_BYTES:,} that are read of a "
            "file; remove it or replace it by a smaller one"
        )


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

    def read(name: str) -> bytes:
        # The size that the zip declares. Python never unpacks more than that.
        _check_bytes(files[name][0], f"{path}: {name}")
        try:
            return archive.read(name)
        # A damaged member, an unknown compression, or a member that needs a password.
        except Exception as error:
            raise UserError(
                f"{path}: {name} cannot be read from the zip; is the copy complete?"
            ) from error

    return Tree(path, files, folders, read)
