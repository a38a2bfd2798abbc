"""Files that are no images: counted, or refused before they are read."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from kd_lightning.data import ImageFolderDataModule, SegmentationDataModule
from kd_lightning.data.images import tree
from tests.data.images.camvid import CLASSES, VOID, write_camvid
from tests.data.images.folders import complaint, picture, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", {"train": 2, "test": 1})


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The notices about the data."""
    out = capsys.readouterr().out.splitlines()
    return [line for line in out if line.startswith("data: ")]


# -- suffixes -----------------------------------------------------------------------------------


def test_skipped_files_are_counted_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.dcm", "b.dcm", "c.DCM", "d.txt", "noext"):
        (folder / "train" / "ant" / name).write_text("x")
    (folder / "train" / "ant" / ".hidden").write_text("x")
    ImageFolderDataModule(str(folder))
    ImageFolderDataModule(str(folder))
    assert lines(capsys) == [
        f"data: {folder}: skips 5 files in train/ that have no suffix of an image: 3 .dcm, "
        "1 .txt, 1 without suffix; for example train/ant/a.dcm"
    ]


def test_no_line_without_skipped_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ImageFolderDataModule(str(folder))
    assert lines(capsys) == []


@pytest.mark.parametrize("suffix", ["gif", "tif", "TIFF", "pgm", "pbm", "jfif", "webp"])
def test_images_of_every_usual_suffix_are_read(folder: Path, suffix: str) -> None:
    path = folder / "train" / "ant" / f"more.{suffix}"
    mode = "1" if suffix == "pbm" else "L"
    picture(5).convert(mode).save(path)
    assert len(ImageFolderDataModule(str(folder)).raw("train").images) == 5


def test_a_class_of_other_files_is_refused_with_an_example(folder: Path) -> None:
    for path in (folder / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".dcm"))
    message = complaint(folder)
    assert "class folder train/bee holds no image" in message
    assert "only files such as train/bee/0.dcm" in message


def test_names_cannot_control_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "ant" / "a\x1b[2J\n.txt").write_text("x")
    ImageFolderDataModule(str(folder))
    (line,) = lines(capsys)
    assert line.endswith("train/ant/a?[2J?.txt")


def test_segmentation_counts_what_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_camvid(tmp_path / "small", train=2, val=0, test=1)
    (root / "train" / "images" / "notes.txt").write_text("x")
    shutil.copy(
        root / "train" / "labels" / "00.png", root / "train" / "labels" / "99.png"
    )
    SegmentationDataModule(str(root), {**CLASSES}, [VOID], masks="labels")
    printed = lines(capsys)
    assert len(printed) == 2
    assert (
        "1 file in train/images/ that have no suffix of an image: 1 .txt" in printed[0]
    )
    assert "masks of no image" in printed[1]
    assert "train/labels/99.png" in printed[1]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_camvid(tmp_path / "small", train=2, val=0, test=1)
    with Image.open(root / "train" / "images" / "00.png") as image:
        image.save(root / "train" / "images" / "00.bmp")
    with pytest.raises(ValueError, match="differ only in their suffix"):
        SegmentationDataModule(str(root), {**CLASSES}, [VOID], masks="labels")


# -- files that must not be read ----------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent.parent.parent.parent / "pipe")
    path.symlink_to(path.parent.parent.parent.parent / "pipe")


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere.png")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_parent(path: Path) -> None:
    path.symlink_to("..")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (make_fifo, "is or links to a named pipe, not a regular file"),
        (link_to_fifo, "is or links to a named pipe, not a regular file"),
        (link_to_zero, "is or links to a device, not a regular file"),
        (link_to_nothing, "is a link to a file that does not exist"),
        (link_to_itself, "symbolic links"),
        (link_to_parent, "is a link to a folder that contains it"),
    ],
)
def test_what_is_no_regular_file_is_refused(
    folder: Path, make: object, part: str
) -> None:
    assert callable(make)
    make(folder / "train" / "ant" / "z.png")
    message = complaint(folder)
    assert part in message
    assert "train/ant/z.png" in message


def test_links_to_files_and_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "ant").rename(tmp_path / "elsewhere")
    (folder / "train" / "ant").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "bee" / "link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert len(ImageFolderDataModule(str(folder)).raw("train").images) == 5


# -- sizes --------------------------------------------------------------------------------------


def test_a_large_file_is_refused_unread(folder: Path) -> None:
    # Sparse: it takes no space on the disk.
    with (folder / "train" / "ant" / "big.png").open("wb") as file:
        file.truncate(5 * 10**9)
    message = complaint(folder)
    assert (
        "train/ant/big.png has 5,000,000,000 bytes, more than the 536,870,912"
        in message
    )


def test_a_large_member_of_a_zip_is_refused_unread(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", folder))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/ant/big.png", bytes(10**6))
    monkeypatch.setattr(tree, "MAX_FILE_BYTES", 10**5)
    message = complaint(path)
    assert "train/ant/big.png has 1,000,000 bytes, more than the 100,000" in message


def test_a_narrow_image_is_not_resized_to_a_huge_one(folder: Path) -> None:
    Image.new("RGB", (100_000, 1)).save(folder / "train" / "ant" / "narrow.png")
    message = complaint(folder, size=224)
    assert "train/ant/narrow.png, resized to data.size=224, has more than" in message


@pytest.mark.parametrize("size", [0, -5, 10_000, 10**9])
def test_a_size_out_of_range(folder: Path, size: int) -> None:
    assert "data.size must be at least 1 pixel" in complaint(folder, size=size)
