"""Lists the labeled images of a tree that has one folder per split and class."""

from __future__ import annotations

from dataclasses import dataclass

from kd_lightning.data.images.tree import Tree
from kd_lightning.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp")
_LAYOUT = "it must hold train/CLASS/ and test/CLASS/ (or val/CLASS/) with the images of each class"


@dataclass
class Listing:
    """The images of both splits, sorted by class and name.

    Attributes:
        classes: names of the class folders, sorted.
        files: names in the tree for "train" and "test".
        target: class id of each file for "train" and "test".
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    target: dict[str, list[int]]


def list_images(tree: Tree) -> Listing:
    """List all images of a tree.

    The test split is the folder `test`, or `val` if there is no `test`.

    Raises:
        UserError: if a split or a class has no images, or the splits have different classes.
    """
    tops: set[str] = set()
    for folder in tree.folders:
        top, _, _ = folder.partition("/")
        tops.add(top)
    if "train" not in tops:
        raise UserError(f"{tree.path} has no train folder; {_LAYOUT}")
    if not tops & {"test", "val"}:
        raise UserError(f"{tree.path} has no test or val folder; {_LAYOUT}")
    test_folder = "test" if "test" in tops else "val"
    train = _images_by_class(tree, "train")
    test = _images_by_class(tree, test_folder)
    _check_classes(tree, test, test_folder, train, "train")
    _check_classes(tree, train, "train", test, test_folder)

    classes = tuple(sorted(train))
    files: dict[str, list[str]] = {"train": [], "test": []}
    target: dict[str, list[int]] = {"train": [], "test": []}
    for split, by_class in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            names = sorted(by_class[name])
            files[split].extend(names)
            target[split].extend([label] * len(names))
    return Listing(classes, files, target)


def _check_classes(
    tree: Tree,
    images: dict[str, list[str]],
    folder: str,
    other_images: dict[str, list[str]],
    other_folder: str,
) -> None:
    """Check that a split has all classes of the other split."""
    missing = sorted(other_images.keys() - images.keys())
    if missing:
        raise UserError(
            f"{tree.path}: {folder} has no class {missing[0]!r}, which {other_folder} has; "
            f"{_LAYOUT}"
        )


def _images_by_class(tree: Tree, split: str) -> dict[str, list[str]]:
    """The images of a split by class; they may lie at any depth below the class folder."""
    images: dict[str, list[str]] = {}
    # List the folders first, so that a class without images is noticed.
    for folder in tree.folders:
        parts = folder.split("/")
        if parts[0] == split and len(parts) > 1:
            images[parts[1]] = []
    for name in tree.files:
        if not name.startswith(f"{split}/") or not name.lower().endswith(SUFFIXES):
            continue
        parts = name.split("/")
        if len(parts) == 2:
            raise UserError(f"{tree.path}: {name} lies in no class folder; {_LAYOUT}")
        images[parts[1]].append(name)
    if not images:
        raise UserError(f"{tree.path}: {split} holds no class folders; {_LAYOUT}")
    for class_name in sorted(images):
        if not images[class_name]:
            suffixes = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(
                f"{tree.path}: the class folder {split}/{class_name} holds no image ({suffixes}); "
                "fill it or remove it"
            )
    return images


def human_names(tree: Tree, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes for people.

    `words.txt` at the top of the tree gives them, one `CLASS<TAB>name, other names` per line; the
    first name is used. Without it, the name of a class is that of its folder.

    Args:
        tree: the tree.
        classes: names of the class folders.

    Returns:
        One name per class. The folder's name is added in parentheses if two classes share a name.
    """
    words = _read_words(tree) if "words.txt" in tree.files else {}
    names = [words.get(folder, folder) for folder in classes]
    unique_names = []
    for folder, name in zip(classes, names, strict=True):
        unique_name = name
        if names.count(name) > 1:
            unique_name = f"{name} ({folder})"
        unique_names.append(unique_name)
    return tuple(unique_names)


def _read_words(tree: Tree) -> dict[str, str]:
    """The first name of each class in `words.txt`; lines in another form are skipped."""
    words = {}
    for line in tree.read("words.txt").decode(errors="replace").splitlines():
        folder, tab, names = line.partition("\t")
        if tab and names.strip():
            first_name, _, _ = names.partition(",")
            words[folder.strip()] = first_name.strip()
    return words
