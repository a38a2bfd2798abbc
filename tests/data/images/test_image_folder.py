"""Folders and zips of images: what is read, the cache, and one line for everything that can be wrong with either."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as v2

from kd_lightning.data import ImageFolderDataModule
from kd_lightning.data.images import decoding, image_cache
from kd_lightning.errors import UserError

Edit = Callable[[Path], object]

SUFFIXES = ("png", "jpg", "jpeg", "JPEG", "ppm", "bmp", "webp")
LOSSLESS = ("png", "ppm", "bmp")


def picture(seed: int, width: int = 6, height: int = 6) -> Image.Image:
    # Small pictures blown up: JPEG keeps what changes slowly.
    small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95) if path.suffix.lower() in (
        ".jpg",
        ".jpeg",
        ".webp",
    ) else image.save(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes ant, bee and cow: in train an image of each suffix, in test two; and files that are no images."""
    root = tmp_path / "set"
    for label, name in enumerate(("cow", "ant", "bee")):
        for i, suffix in enumerate(SUFFIXES):
            save(root / "train" / name / f"{i}.{suffix}", picture(10 * label + i))
        for i in range(2):
            save(
                root / "test" / name / "deep" / f"{i}.png",
                picture(100 + 10 * label + i),
            )
    (root / "train" / "cow" / "boxes.txt").write_text("no image")
    (root / "train" / "cow" / ".hidden.png").write_text("no image")
    (root / "words.txt").write_text(
        "ant\temmet, pismire\ncow\tox, kine\nbroken line\nelk\tmoose\n"
    )
    return root


def zipped(folder: Path, top: str = "top/") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
        archive.writestr("__MACOSX/._x.png", "no image")
    return path


def read(path: Path, **options: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(path), validation=0.0, **options)


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def caches(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "images").iterdir() if path.is_dir())


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all images that are decoded, in the end."""
    names: list[str] = []
    original = decoding.decode_image

    def counted(tree: Any, name: str, *options: Any) -> Any:
        names.append(name)
        return original(tree, name, *options)

    monkeypatch.setattr(image_cache, "decode_image", counted)
    return names


def test_images_by_class_and_name(folder: Path) -> None:
    data = read(folder)
    train, test = data.raw("train"), data.raw("test")
    assert data.folders == ("ant", "bee", "cow")
    assert data.classes == ("emmet", "bee", "ox")
    assert (train.images.dtype, tuple(train.images.shape)) == (
        torch.uint8,
        (21, 3, 6, 6),
    )
    assert train.target.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert test.target.tolist() == [0, 0, 1, 1, 2, 2]
    for label, (name, seed) in enumerate((("ant", 10), ("bee", 20), ("cow", 0))):
        for i, suffix in enumerate(SUFFIXES):
            image = train.images[7 * label + i]
            with Image.open(folder / "train" / name / f"{i}.{suffix}") as file:
                assert torch.equal(image, v2.pil_to_tensor(file.convert("RGB")))
            assert (
                torch.equal(image, v2.pil_to_tensor(picture(seed + i)))
                or suffix not in LOSSLESS
            )
    assert torch.equal(test.images[1], v2.pil_to_tensor(picture(111)))
    assert (data.name, data.spec.num_classes, data.spec.input_shape) == (
        "set",
        3,
        (3, 6, 6),
    )


@pytest.mark.parametrize("top", ["", "top/"])
def test_a_zip_is_the_same_data(folder: Path, top: str) -> None:
    plain, packed = read(folder), read(zipped(folder, top))
    assert packed.spec == plain.spec
    assert packed.fingerprint() == plain.fingerprint()


def test_val_stands_in_for_test(folder: Path) -> None:
    expected = read(folder).raw("test").images
    (folder / "test").rename(folder / "val")
    assert torch.equal(read(folder).raw("test").images, expected)


def test_normalization_is_that_of_the_training_images(folder: Path) -> None:
    data = read(folder)
    pixels = data.raw("train").images.double() / 255
    torch.testing.assert_close(
        torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), atol=5.1e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(data.std).double(),
        pixels.std((0, 2, 3), correction=0),
        atol=5.1e-5,
        rtol=0,
    )
    plain = data.spec.to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_a_channel_of_one_value_is_not_divided_by_zero(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "x" / "1.png", Image.new("RGB", (4, 4), (255, 0, 0)))
    assert read(tmp_path).std == (1.0, 1.0, 1.0)


def test_grey_and_transparent_images(folder: Path) -> None:
    for i, mode in enumerate(("L", "RGBA", "P", "1", "CMYK")):
        picture(i).convert(mode).save(
            folder / "train" / "ant" / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        )
    assert read(folder).raw("train").images.shape[1:] == (3, 6, 6)
    grey = read(folder, grey=True)
    assert grey.raw("train").images.shape[1:] == (1, 6, 6)
    assert len(grey.mean) == 1
    assert read(folder, grey=True, channels=3).spec.input_shape == (3, 6, 6)


def test_sizes_that_differ_are_named_or_made_alike(folder: Path) -> None:
    save(folder / "test" / "bee" / "z.png", picture(5, width=12, height=8))
    message = complaint(folder)
    assert "train/ant/0.png is 6x6" in message
    assert "test/bee/z.png is 12x8" in message
    assert "--data.size" in message
    data = read(folder, size=4)
    assert data.spec.input_shape == (3, 4, 4)
    expected = v2.center_crop(v2.resize(picture(5, 12, 8), [4]), [4, 4])
    wide = data.raw("test").images[
        [i for i, t in enumerate(data.raw("test").target.tolist()) if t == 1][-1]
    ]
    assert torch.equal(wide, v2.pil_to_tensor(expected))
    assert "data.size must be at least 1" in complaint(folder, size=0)


# -- the cache --------------------------------------------------------------------------------------------------------


def test_images_are_decoded_once(
    folder: Path, cache: Path, decodings: list[str]
) -> None:
    first = read(folder)
    assert set(decodings) == {
        *(f"train/{c}/{i}.{s}" for c in first.folders for i, s in enumerate(SUFFIXES))
    } | {f"test/{c}/deep/{i}.png" for c in first.folders for i in range(2)}
    decodings.clear()
    again = read(folder)
    assert (decodings, again.spec, again.fingerprint()) == (
        [],
        first.spec,
        first.fingerprint(),
    )
    assert len(caches(cache)) == 1
    read(folder, cache=str(cache / "elsewhere"))
    assert decodings
    assert len(caches(cache / "elsewhere")) == 1


def test_the_cache_does_not_depend_on_where_the_source_lies(
    folder: Path, cache: Path, decodings: list[str]
) -> None:
    read(folder)
    read(zipped(folder))
    decodings.clear()
    moved = folder.rename(folder.with_name("moved"))
    read(moved)
    shutil.copytree(moved, moved / "copy" / "again", copy_function=shutil.copy2)
    read(moved / "copy")
    shutil.move(folder.with_suffix(".zip"), moved / "other.zip")
    read(moved / "other.zip")
    assert decodings == []
    assert len(caches(cache)) == 2  # a zip tells of content, a folder of times


def repaint(folder: Path) -> None:
    path = folder / "train/ant/0.png"
    size = path.stat().st_size
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path, compress_level=0)
    assert path.stat().st_size != size
    os.utime(path, (10**9, 10**9))


CHANGES: list[tuple[str, Edit]] = [
    ("other content", repaint),
    (
        "another time",
        lambda folder: os.utime(folder / "test/ant/deep/0.png", ns=(0, 7)),
    ),
    ("a file more", lambda folder: save(folder / "train/ant/new.png", picture(77))),
    ("a file less", lambda folder: (folder / "train/ant/0.png").unlink()),
    (
        "another name",
        lambda folder: (folder / "train/ant/0.png").rename(folder / "train/ant/00.png"),
    ),
    (
        "another class",
        lambda folder: (folder / "train/ant/0.png").rename(folder / "train/bee/00.png"),
    ),
]


@pytest.mark.parametrize(
    "edit", [edit for _, edit in CHANGES], ids=[name for name, _ in CHANGES]
)
def test_a_changed_source_is_decoded_anew(
    folder: Path, decodings: list[str], edit: Edit
) -> None:
    read(folder)
    decodings.clear()
    edit(folder)
    read(folder)
    assert decodings


def test_a_zip_whose_content_changed_is_decoded_anew(
    folder: Path, decodings: list[str]
) -> None:
    path = zipped(folder)
    read(path)
    stamp = path.stat().st_mtime_ns
    repaint(folder)
    zipped(folder)
    os.utime(path, ns=(stamp, stamp))
    decodings.clear()
    read(path)
    assert decodings


def test_other_options_are_other_caches(folder: Path, cache: Path) -> None:
    for options in ({}, {"grey": True}, {"size": 4}, {"size": 5}):
        read(folder, **options)
    assert len(caches(cache)) == 4


DAMAGE: list[tuple[str, Edit]] = [
    (
        "cut short",
        lambda found: (found / "train.npy").write_bytes(
            (found / "train.npy").read_bytes()[:-1]
        ),
    ),
    ("empty", lambda found: (found / "test.npy").write_bytes(b"")),
    ("missing", lambda found: (found / "about.json").unlink()),
    ("no JSON", lambda found: (found / "about.json").write_text("{")),
    (
        "fewer images",
        lambda found: np.save(found / "test.npy", np.zeros((1, 3, 6, 6), np.uint8)),
    ),
    (
        "a pickle",
        lambda found: np.save(
            found / "test.npy", np.array([{}] * 6), allow_pickle=True
        ),
    ),
]


@pytest.mark.parametrize(
    "damage", [damage for _, damage in DAMAGE], ids=[name for name, _ in DAMAGE]
)
def test_a_damaged_cache_is_not_used(
    folder: Path, cache: Path, decodings: list[str], damage: Edit
) -> None:
    expected = read(folder).fingerprint()
    [name] = caches(cache)
    damage(cache / "images" / name)
    decodings.clear()
    assert read(folder).fingerprint() == expected
    assert decodings
    assert caches(cache) == [name]


def test_decoding_that_fails_or_is_killed_leaves_nothing_that_counts(
    folder: Path, cache: Path
) -> None:
    broken = folder / "test/cow/deep/1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    os.utime(broken, ns=(0, 0))
    assert "test/cow/deep/1.png cannot be read as an image" in complaint(folder)
    assert caches(cache) == []
    broken.write_bytes(whole)
    data = read(folder)
    [name] = caches(cache)
    half = cache / "images" / f".{name}.12345"  # what a killed process leaves
    (cache / "images" / name).rename(half)
    (half / "test.npy").unlink()
    assert read(folder).fingerprint() == data.fingerprint()
    assert caches(cache) == [name]


def test_two_processes_that_ask_at_once_decode_once(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = decoding.decode_image

    def slow(tree: Any, name: str, *options: Any) -> Any:
        time.sleep(0.01)
        with (tmp_path / "log").open("a") as log:
            log.write(f"{os.getpid()} {name}\n")
        return original(tree, name, *options)

    monkeypatch.setattr(image_cache, "decode_image", slow)

    def ask(number: int) -> None:
        (tmp_path / f"said{number}").write_text(str(read(folder).mean))

    fork = multiprocessing.get_context("fork")  # the other ways import everything again
    started = [fork.Process(target=ask, args=(number,)) for number in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]
    said = [(tmp_path / f"said{number}").read_text() for number in range(2)]
    assert said == [str(read(folder).mean)] * 2
    log = (tmp_path / "log").read_text().splitlines()
    assert len({line.split()[0] for line in log}) == 1
    assert len(log) == 28  # the first image is looked at twice, for its size
    assert len(caches(cache)) == 1


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "KD_CACHE" in complaint(folder, cache=str(tmp_path / "file"))


# -- what is wrong with a source --------------------------------------------------------------------------------------


def without_classes(folder: Path) -> None:
    for path in (folder / "train").iterdir():
        shutil.rmtree(path)


MISTAKES: list[tuple[Edit, str]] = [
    (lambda folder: shutil.rmtree(folder / "train"), "has no train folder"),
    (lambda folder: shutil.rmtree(folder / "test"), "has no test or val folder"),
    (
        lambda folder: (folder / "train" / "dog").mkdir(),
        "the class folder train/dog holds no image (png, jpg",
    ),
    (
        lambda folder: shutil.rmtree(folder / "test" / "bee"),
        "test has no class 'bee', which train has",
    ),
    (
        lambda folder: shutil.rmtree(folder / "train" / "bee"),
        "train has no class 'bee', which test has",
    ),
    (
        lambda folder: save(folder / "train" / "x.png", picture(0)),
        "train/x.png lies in no class folder",
    ),
    (
        lambda folder: (folder / "train/ant/0.png").write_bytes(b"<html>"),
        "train/ant/0.png cannot be read as an image",
    ),
    (
        lambda folder: (folder / "train/ant/0.png").write_bytes(b""),
        "train/ant/0.png cannot be read as an image",
    ),
    (without_classes, "train holds no class folders"),
]


@pytest.mark.parametrize(("edit", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_mistakes_are_one_line(folder: Path, edit: Edit, said: str, kind: str) -> None:
    edit(folder)
    path = folder if kind == "folder" else zipped(folder)
    message = complaint(path)
    assert said in message
    assert str(path) in message


def test_neither_a_folder_nor_a_zip(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_DATA_ROOT", str(tmp_path))
    assert f"no folder or zip {tmp_path / 'nowhere'}" in complaint(Path("nowhere"))
    (tmp_path / "text").write_text("no zip")
    assert "neither a folder nor a complete zip file" in complaint(Path("text"))
    path = zipped(folder)
    path.write_bytes(path.read_bytes()[:-100])
    assert "neither a folder nor a complete zip file" in complaint(path)
    assert read(Path("set")).name == "set"


def test_a_zip_whose_bytes_are_damaged(folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("top/train/bee/0.png").header_offset
    content = bytearray(path.read_bytes())
    content[start + 60 : start + 64] = bytes(4)
    path.write_bytes(content)
    assert "train/bee/0.png cannot be read from the zip" in complaint(path)


def test_two_classes_of_one_name_stay_apart(folder: Path) -> None:
    (folder / "words.txt").write_text("ant\tcrane, bird\ncow\tcrane, machine\n")
    assert read(folder).classes == ("crane (ant)", "bee", "crane (cow)")
    (folder / "words.txt").unlink()
    assert read(folder).classes == ("ant", "bee", "cow")


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "first", "train", "test"),
    [
        ("cifar10-jpeg.zip", 10, "airplane", 50_000, 10_000),
        ("tiny-imagenet-100-32.zip", 100, "goldfish", 50_000, 5_000),
    ],
)
def test_the_real_zips(
    data_root: Path,
    name: str,
    classes: int,
    first: str,
    train: int,
    test: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kd_lightning.data.images.listing import human_names, list_images
    from kd_lightning.data.images.tree import open_tree

    if not (data_root / name).is_file():
        pytest.skip(f"{data_root} holds no {name}")
    tree = open_tree(data_root / name)
    listing = list_images(tree)
    assert {split: len(files) for split, files in listing.files.items()} == {
        "train": train,
        "test": test,
    }
    assert len(listing.classes) == classes
    assert human_names(tree, listing.classes)[0] == first
    with Image.open(io.BytesIO(tree.read(listing.files["test"][-1]))) as image:
        assert image.size == (32, 32)
