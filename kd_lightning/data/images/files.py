"""Labelled images in a folder or in a zip of one: which there are, and their bytes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_LAYOUT = "it must hold train/CLASS/ and test/CLASS/ (or val/CLASS/) with the images of each class"

Stamp = tuple[int, int]


@dataclass
class Tree:
    """The files of a folder or a zip, without hidden ones.

    Attributes:
        path: of the folder or the zip.
        files: each file's name from the top, with `/`, and what changes with its content: its size, and its time of
            modification (in a zip, which keeps one, the checksum).
        folders: names of all folders, empty ones included, where they are known.
        read: the bytes of a file of that name; several threads may call it.
    """

    path: Path
    files: dict[str, Stamp]
    folders: set[str]
    read: Callable[[str], bytes]


def open_tree(path: Path) -> Tree:
    """The tree of a folder or a zip. A single folder at the top that holds all the rest is not part of the names.

    Raises:
        UserError: where there is neither.
    """
    if path.is_dir():
        tree = _folder(path)
    elif path.is_file():
        tree = _archive(path)
    else:
        raise UserError(
            f"there is no folder or zip {path}; set --data.path, and --data.root or KD_DATA_ROOT if it is relative"
        )
    tops = {name.partition("/")[0] for name in (*tree.files, *tree.folders)}
    if len(tops) != 1 or tops & {"train", *tree.files}:
        return tree
    [top] = tops
    start, read = len(top) + 1, tree.read
    files = {name[start:]: stamp for name, stamp in tree.files.items()}
    return Tree(
        path,
        files,
        {name[start:] for name in tree.folders} - {""},
        lambda name: read(f"{top}/{name}"),
    )


def _folder(path: Path) -> Tree:
    files: dict[str, Stamp] = {}
    folders: set[str] = set()

    def walk(folder: str, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.add(prefix + entry.name)
                    walk(entry.path, f"{prefix}{entry.name}/")
                else:
                    status = entry.stat()
                    files[prefix + entry.name] = (status.st_size, status.st_mtime_ns)

    try:
        walk(str(path), "")
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return Tree(path, files, folders, lambda name: (path / name).read_bytes())


def _archive(path: Path) -> Tree:
    try:
        # Over an open file: closing what it opened by itself is not safe among threads.
        archive = zipfile.ZipFile(path.open("rb"))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is neither a folder nor a whole zip file; is the copy complete?"
        ) from error
    files: dict[str, Stamp] = {}
    folders: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        if "/." in f"/{name}" or name.startswith("__MACOSX/"):
            continue
        if not info.is_dir():
            files[name] = (info.file_size, info.CRC)
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return Tree(path, files, folders, archive.read)


@dataclass
class Listing:
    """The images of both splits, sorted by class and name.

    Attributes:
        classes: names of the class folders, sorted.
        files: of "train" and "test": names in the tree.
        target: of "train" and "test": the class of each file.
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    target: dict[str, list[int]]


def list_images(tree: Tree) -> Listing:
    """All images of a tree. The test split is the folder `test`, or `val` where there is none.

    Raises:
        UserError: where a split or a class has no images, or the splits have different classes.
    """
    tops = {name.partition("/")[0] for name in tree.folders}
    if "train" not in tops:
        raise UserError(f"{tree.path} has no train folder; {_LAYOUT}")
    if not tops & {"test", "val"}:
        raise UserError(f"{tree.path} has no test or val folder; {_LAYOUT}")
    folders = {"train": "train", "test": "test" if "test" in tops else "val"}
    found = {split: _by_class(tree, folder) for split, folder in folders.items()}
    for split, other in (("test", "train"), ("train", "test")):
        if missing := sorted(found[other].keys() - found[split].keys()):
            raise UserError(
                f"{tree.path}: {folders[split]} has no class {missing[0]!r}, which {folders[other]} has; {_LAYOUT}"
            )
    classes = tuple(sorted(found["train"]))
    files = {
        split: [file for name in classes for file in sorted(found[split][name])] for split in found
    }
    target = {
        split: [label for label, name in enumerate(classes) for _ in found[split][name]]
        for split in found
    }
    return Listing(classes, files, target)


def _by_class(tree: Tree, split: str) -> dict[str, list[str]]:
    """The images of a split by class, at whatever depth below the class folder."""
    below = [name.split("/") for name in tree.folders]
    found: dict[str, list[str]] = {
        parts[1]: [] for parts in below if parts[0] == split and len(parts) > 1
    }
    for name in tree.files:
        if name.startswith(f"{split}/") and name.lower().endswith(SUFFIXES):
            parts = name.split("/")
            if len(parts) == 2:
                raise UserError(f"{tree.path}: {name} lies in no class folder; {_LAYOUT}")
            found[parts[1]].append(name)
    if not found:
        raise UserError(f"{tree.path}: {split} holds no class folders; {_LAYOUT}")
    if empty := sorted(name for name, files in found.items() if not files):
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UserError(
            f"{tree.path}: the class folder {split}/{empty[0]} holds no image ({kinds}); fill it or remove it"
        )
    return found


def human_names(tree: Tree, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names for people from `words.txt` (`CLASS<TAB>name, other names`), where the tree has one; else the folders' names.

    The first of a class's names, with the folder's behind it where two classes have the same.
    """
    words = dict(_words(tree)) if "words.txt" in tree.files else {}
    names = [words.get(name, name) for name in classes]
    return tuple(
        n if names.count(n) == 1 else f"{n} ({folder})"
        for n, folder in zip(names, classes, strict=True)
    )


def _words(tree: Tree) -> Iterator[tuple[str, str]]:
    for line in tree.read("words.txt").decode(errors="replace").splitlines():
        name, tab, rest = line.partition("\t")
        if tab and rest.strip():
            yield name.strip(), rest.partition(",")[0].strip()
