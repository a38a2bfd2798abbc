"""`kd init`: writes a working project into a new folder."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain
from kd_lightning.files import write_whole_text
from kd_lightning.runs.arguments import CommandParser

TEMPLATES = Path(__file__).parent / "templates"

SHARED = {
    "Makefile": "Makefile",
    "README.md": "README.md",
    "test_project.py": "test_project.py.txt",
}
"""The files of every project, with their templates."""

OWN_DATA = {
    "my_data.py": "my_data.py.txt",
    "data.yaml": "data.yaml",
    "teacher.yaml": "teacher.yaml",
    "student.yaml": "student.yaml",
}
"""The files of a project with a datamodule."""

IMAGES = {
    "data.yaml": "data_images.yaml",
    "teacher.yaml": "teacher_images.yaml",
    "student.yaml": "student_images.yaml",
}
"""The files of a project whose data is a folder of images."""


def parser() -> argparse.ArgumentParser:
    """The options of `kd init`."""
    options = CommandParser(
        "kd init",
        usage="kd init [DIR] [--images FOLDER]",
        description="Write a project to start from: data, a teacher, its student, a Makefile and a "
        "test. It trains unchanged on 8x8 digits; replace them with your own data.",
    )
    options.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="DIR",
        help="new or empty folder to write to; default: the current folder",
    )
    options.add_argument(
        "--images",
        metavar="FOLDER",
        help="use the images in FOLDER/train/CLASS/ and FOLDER/test/CLASS/ as the data; no "
        "datamodule is written",
    )
    return options


def main(argv: Sequence[str]) -> None:
    """Run `kd init`.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake; no file is written then.
    """
    options = parser().parse_args(list(argv))
    folder = Path(options.folder).expanduser()
    _check_folder(folder)
    # All checks come first, so that a mistake writes nothing.
    files = dict(SHARED)
    values = {}
    if options.images is None:
        files |= OWN_DATA
    else:
        files |= IMAGES
        values["@IMAGES@"] = _images_from(folder, Path(options.images).expanduser())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, template in files.items():
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            write_whole_text(folder / name, text)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror})") from error
    print(_summary(folder, sorted(files)))


def _check_folder(folder: Path) -> None:
    """Refuse to write beside files that exist.

    Raises:
        UserError: if the folder is a file, or is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"kd init: {folder} is a file; name a new folder")
    # Hidden files, such as those of version control, are not in the way.
    taken = []
    if folder.is_dir():
        for path in folder.iterdir():
            if not path.name.startswith("."):
                taken.append(path.name)
    if taken:
        raise UserError(
            f"kd init: {folder} already holds {sorted(taken)[0]!r}; name a new or empty folder"
        )


def _images_from(folder: Path, images: Path) -> str:
    """The path of the images as the project's config names it, relative to the project.

    Raises:
        UserError: if there is no such folder, or if it has no classes to train on.
    """
    if not images.is_dir():
        raise UserError(f"kd init: there is no folder {images}; --images names one")
    train = images / "train"
    classes = []
    if train.is_dir():
        classes = [path for path in train.iterdir() if path.is_dir()]
    if len(classes) < 2:
        raise UserError(
            f"kd init: {images} needs train/CLASS/ and test/CLASS/ with two classes or more"
        )
    relative = os.path.relpath(images.resolve(), folder.resolve())
    # Quoted for YAML, whatever characters the path has.
    return '"' + relative.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _summary(folder: Path, names: Sequence[str]) -> str:
    """What was written, and what to do next."""
    enter = "" if folder == Path() else f"cd {plain(str(folder))} && "
    make = "make" if shutil.which("make") else "see the Makefile"
    return (
        f"wrote {', '.join(names)}\n"
        f"next: {enter}{make}    # teacher, student alone, distilled student, comparison"
    )
