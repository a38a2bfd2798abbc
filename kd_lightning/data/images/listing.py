"""Lists the labeled images of a tree that has one folder per split and class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kd_lightning.data.images.tree import Tree
from kd_lightning.data.notices import notice
from kd_lightning.errors import UserError

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
)
VALIDATION_FOLDERS = ("val", "valid", "validation")
_LAYOUT = "it must hold train/CLASS/ and test/CLASS/ (or val/CLASS/) with the images of each class"


@dataclass
class Listing:
    """The images of both source splits, sorted by class and name.

    The images of a validation folder follow those of `train` in the source split "train", and are
    sorted among themselves. Without a folder `test` they are the source split "test", too.

    Attributes:
        classes: names of the class folders, sorted.
        files: names in the tree for "train" and "test".
        target: class id of each file for "train" and "test".
        num_train: how many images of the source split "train" lie in the folder `train`.
        validation_folder: the folder of the validation images; `None` if there is none.
        test_folder: the folder of the source split "test".
    """

    classes: tuple[str, ...]
    files: dict[str, list[str]]
    target: dict[str, list[int]]
    num_train: int
    validation_folder: str | None
    test_folder: str


def list_images(tree: Tree) -> Listing:
    """List all images of a tree.

    Raises:
        UserError: if a split or a class has no images, or the splits have different classes.
    """
    tops = _top_folders(tree)
    # A tree without a test folder is tested on its validation images, as is common with
    # ImageNet.
    validation_folder = find_validation_folder(tree)
    if "train" not in tops:
        raise UserError(f"{tree.path} has no train folder; {_LAYOUT}")
    test_folder = "test" if "test" in tops else validation_folder
    if test_folder is None:
        raise UserError(f"{tree.path} has no test or val folder; {_LAYOUT}")

    # The classes are numbered by the sorted names of the training folders.
    train = _images_by_class(tree, "train")
    classes = tuple(sorted(train))
    files: dict[str, list[str]] = {"train": [], "test": []}
    target: dict[str, list[int]] = {"train": [], "test": []}
    _append(files["train"], target["train"], train, classes)
    # Validation images follow the training images in one source split; this is where
    # they begin.
    num_train = len(files["train"])
    for folder, split in ((validation_folder, "train"), (test_folder, "test")):
        if folder is None:
            continue
        images = _images_by_class(tree, folder)
        # In both directions: a class of one split alone is never learned, or never tested.
        _check_classes(tree, images, folder, train, "train")
        _check_classes(tree, train, "train", images, folder)
        _append(files[split], target[split], images, classes)
    _report_unused_folders(tree, {"train", "test", test_folder, validation_folder})
    return Listing(classes, files, target, num_train, validation_folder, test_folder)


def _report_unused_folders(tree: Tree, used: set[str | None]) -> None:
    """Print which other folders hold images: `dev` may be meant as a validation split."""
    counts: Counter[str] = Counter()
    for name in tree.files:
        top, separator, _ = name.partition("/")
        if separator and top not in used and is_image(name):
            counts[top] += 1
    if not counts:
        return
    folders = [f"{folder}/ ({count:,})" for folder, count in sorted(counts.items())]
    notice(
        f"{tree.path}: does not read the images in {', '.join(folders[:5])}; the splits are train, "
        f"test and {' or '.join(VALIDATION_FOLDERS)}"
    )


def _append(
    files: list[str],
    target: list[int],
    images: dict[str, list[str]],
    classes: Sequence[str],
) -> None:
    """Add a folder's images, sorted by class and name, to the files and targets of a split."""
    for label, name in enumerate(classes):
        names = sorted(images[name])
        files.extend(names)
        target.extend([label] * len(names))


def _top_folders(tree: Tree) -> set[str]:
    tops: set[str] = set()
    for folder in tree.folders:
        top, _, _ = folder.partition("/")
        tops.add(top)
    return tops


def find_validation_folder(tree: Tree) -> str | None:
    """The folder at the top of a tree that holds validation images; `None` if there is none.

    Raises:
        UserError: if there are several.
    """
    tops = _top_folders(tree)
    present = [name for name in VALIDATION_FOLDERS if name in tops]
    # Nothing says which of them is meant.
    if len(present) > 1:
        raise UserError(
            f"{tree.path} has the validation folders {' and '.join(present)}; keep one of them"
        )
    if not present:
        return None
    return present[0]


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def report_skipped(tree: Tree, names: Sequence[str], why: str) -> None:
    """Print how many files are not read, of which kinds, and one of them.

    Args:
        tree: the tree that holds the files.
        names: the files; nothing is printed if there are none.
        why: completes the sentence "3 files ...".
    """
    if not names:
        return
    # A few kinds tell what the files are; a list of thousands of names would not.
    counts = Counter(_suffix(name) for name in names)
    kinds = [f"{count:,} {suffix}" for suffix, count in counts.most_common(5)]
    if len(counts) > 5:
        kinds.append("others")
    files = "file" if len(names) == 1 else "files"
    notice(
        f"{tree.path}: skips {len(names):,} {files} {why}: {', '.join(kinds)}; for example "
        f"{min(names)}"
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "without suffix"


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
    skipped: list[str] = []
    # List the folders first, so that a class without images is noticed.
    for folder in tree.folders:
        parts = folder.split("/")
        if parts[0] == split and len(parts) > 1:
            images[parts[1]] = []
    for name in tree.files:
        if not name.startswith(f"{split}/"):
            continue
        if not is_image(name):
            skipped.append(name)
            continue
        parts = name.split("/")
        if len(parts) == 2:
            raise UserError(f"{tree.path}: {name} lies in no class folder; {_LAYOUT}")
        images[parts[1]].append(name)
    if not images:
        raise UserError(f"{tree.path}: {split} holds no class folders; {_LAYOUT}")
    for class_name in sorted(images):
        if not images[class_name]:
            _refuse_empty_class(tree, f"{split}/{class_name}", skipped)
    report_skipped(tree, skipped, f"in {split}/ that have no suffix of an image")
    return images


def _refuse_empty_class(tree: Tree, folder: str, skipped: Sequence[str]) -> None:
    """Report a class folder without images, and which other files it holds."""
    others = sorted(name for name in skipped if name.startswith(f"{folder}/"))
    instead = f", only files such as {others[0]}" if others else ""
    raise UserError(
        f"{tree.path}: the class folder {folder} holds no image "
        f"({', '.join(suffix[1:] for suffix in SUFFIXES)}){instead}; fill it or remove it"
    )


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
    # ImageNet's folders are named by WordNet ids, and `words.txt` translates them.
    words = _read_words(tree) if "words.txt" in tree.files else {}
    names = [words.get(folder, folder) for folder in classes]
    unique_names = []
    for folder, name in zip(classes, names, strict=True):
        unique_name = name
        # Two synsets may share a word, such as the bird and the machine "crane".
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
