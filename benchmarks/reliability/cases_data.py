"""Malformed images, texts and tables."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cases import SHORT, Case, Trained, configs, nothing

Prepare = Callable[[Path], None]


def image(
    size: tuple[int, int] = (16, 16), mode: str = "RGB", kind: str = "PNG"
) -> bytes:
    """An encoded image."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, kind)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header declares a size that its content does not have."""
    import zlib

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    checksum = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + checksum


def folder_of_images(change: Prepare, folder: Path) -> None:
    """Two classes with twelve good images in each split, then a change."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(12):
                (place / f"{number}.png").write_bytes(image())
    change(folder / "images")


def put(path: str, content: bytes) -> Prepare:
    """Write one file below the folder of the data."""

    def write(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    return write


def remove(path: str) -> Prepare:
    """Remove a file or a folder."""
    import shutil

    def act(folder: Path) -> None:
        target = folder / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

    return act


def fifo(folder: Path) -> None:
    """Put a pipe, which no one writes to, among the images."""
    os.mkfifo(folder / "train" / "a" / "pipe.png")


def link_to(target: str) -> Prepare:
    """Put a symbolic link among the images."""

    def act(folder: Path) -> None:
        (folder / "train" / "a" / "link.png").symlink_to(target)

    return act


IMAGES: dict[str, tuple[Prepare, str]] = {
    "good": (nothing, "accepted"),
    "no train folder": (remove("train"), "refused"),
    "no test folder": (remove("test"), "either"),
    "empty class": (lambda f: (f / "train" / "c").mkdir(), "refused"),
    "class only in test": (put("test/c/0.png", image()), "refused"),
    "class only in train": (put("train/c/0.png", image()), "refused"),
    "empty file": (put("train/a/x.png", b""), "refused"),
    "text": (put("train/a/x.png", b"no image"), "refused"),
    "half an image": (put("train/a/x.png", image()[:40]), "refused"),
    "HTML": (put("train/a/x.jpg", b"<html></html>"), "refused"),
    "header of 100,000 pixels square": (
        put("train/a/x.png", png_claiming(100_000, 100_000)),
        "refused",
    ),
    "header of zero pixels": (put("train/a/x.png", png_claiming(0, 0)), "refused"),
    "another size": (put("train/a/x.png", image((8, 8))), "either"),
    "one pixel": (put("train/a/x.png", image((1, 1))), "either"),
    "very long": (put("train/a/x.png", image((4000, 1))), "either"),
    "other suffix": (put("train/a/x.txt", b"notes"), "either"),
    "no suffix": (put("train/a/x", image()), "either"),
    "image beside classes": (put("train/x.png", image()), "either"),
    "nested class": (put("train/a/b/x.png", image()), "either"),
    "hidden file": (put("train/a/.x.png", b"junk"), "either"),
    "pipe": (fifo, "either"),
    "link to nothing": (link_to("nowhere.png"), "either"),
    "link to itself": (link_to("link.png"), "either"),
    "link to zeros": (link_to("/dev/zero"), "either"),
    "SVG bomb": (put("train/a/x.svg", b"<svg/>"), "either"),
    "newline in the name": (put("train/a/x\ny.png", image()), "either"),
    "escape in a class": (put("train/\x1b[31mz/x.png", image()), "refused"),
}


def image_cases(trained: Trained) -> Iterator[Case]:
    """Image folders."""
    arguments = [
        "fit",
        *configs("trainer.yaml", "data/image_folder.yaml", "teachers/digits_mlp.yaml"),
        *configs("loggers/csv.yaml"),
        *SHORT,
        "--data.root=.",
        "--data.batch_size=4",
    ]
    for name, (change, expected) in IMAGES.items():
        prepare = partial(folder_of_images, change)
        yield Case("images", name, arguments, prepare, expected)  # type: ignore[arg-type]
    sizes = ("[0, 0]", "[-1, 4]", "x", "[8]", "[100000, 100000]", "0", "[1.5, 2]")
    for size in sizes:
        prepare = partial(folder_of_images, lambda folder: None)
        yield Case(
            "images", f"size {size}", [*arguments, f"--data.size={size}"], prepare
        )


def lines(*rows: str) -> bytes:
    """Lines of a text file."""
    return ("\n".join(rows) + "\n").encode()


GOOD = tuple(
    f"{label}\tsentence number {n}" for n in range(20) for label in ("neg", "pos")
)
HEAD = "label\tsentence"

TEXTS: dict[str, tuple[bytes, str]] = {
    "good": (lines(HEAD, *GOOD), "accepted"),
    "empty": (b"", "refused"),
    "header only": (lines(HEAD), "refused"),
    "no header": (lines(*GOOD), "refused"),
    "one class": (lines(HEAD, "neg\ta", "neg\tb", "neg\tc", "neg\td"), "refused"),
    "a field too many": (lines(HEAD, *GOOD, "neg\ta\tb"), "refused"),
    "a field too few": (lines(HEAD, *GOOD, "neg"), "refused"),
    # A row without a label is an unlabelled sample.
    "empty label": (lines(HEAD, *GOOD, "\ta sentence"), "accepted"),
    "empty sentence": (lines(HEAD, *GOOD, "neg\t"), "either"),
    "a third label once": (lines(HEAD, *GOOD, "nge\ta"), "either"),
    "duplicate column": (lines("label\tlabel", *GOOD), "refused"),
    "other columns": (lines("y\tx", *GOOD), "refused"),
    "bytes": (b"\xff\xfe\x00\x01" * 50, "refused"),
    "UTF-16": ("\n".join([HEAD, *GOOD]).encode("utf-16"), "refused"),
    "null bytes": (lines(HEAD, *GOOD, "neg\ta\0b"), "either"),
    "very long line": (lines(HEAD, *GOOD, "neg\t" + "a " * 200_000), "either"),
    "open quote": (lines(HEAD, *GOOD, 'neg\t"a'), "either"),
    "numeric labels of two forms": (
        lines(
            HEAD,
            *(
                f"{label}\tsentence {n}"
                for n in range(10)
                for label in ("1", "1.0", "0")
            ),
        ),
        "either",
    ),
    "byte order mark": (b"\xef\xbb\xbf" + lines(HEAD, *GOOD), "either"),
    "Windows line ends": (lines(HEAD, *GOOD).replace(b"\n", b"\r\n"), "either"),
    "semicolons": (lines(HEAD, *GOOD).replace(b"\t", b";"), "either"),
}


def write_text(content: bytes, folder: Path) -> None:
    """Write the training file with this content and a good test file."""
    (folder / "text").mkdir()
    (folder / "text" / "train.tsv").write_bytes(content)
    (folder / "text" / "test.tsv").write_bytes(lines(HEAD, *GOOD))


def text_cases(trained: Trained) -> Iterator[Case]:
    """Text files."""
    arguments = [
        "fit",
        *configs("trainer.yaml", "data/text.yaml", "teachers/sst2_textcnn.yaml"),
        *configs("loggers/csv.yaml"),
        *SHORT,
        "--data.root=text",
        "--data.train_file=train.tsv",
        "--data.test_file=test.tsv",
        "--data.text=sentence",
        "--data.label=label",
        "--data.batch_size=8",
    ]
    for name, (content, expected) in TEXTS.items():
        prepare = partial(write_text, content)
        yield Case("texts", name, arguments, prepare, expected)  # type: ignore[arg-type]


TABLE = ("x,z,y", *(f"{n},{n % 3},{'a' if n % 2 else 'b'}" for n in range(40)))

TABLES: dict[str, tuple[bytes, str]] = {
    "good": (lines(*TABLE), "accepted"),
    "empty": (b"", "refused"),
    "header only": (lines("x,z,y"), "refused"),
    "no target column": (lines("x,z", "1,2", "2,3"), "refused"),
    "duplicate column": (lines("x,x,y", "1,2,a", "2,3,b"), "refused"),
    "missing number": (lines(*TABLE, ",1,a"), "refused"),
    "missing label": (lines(*TABLE, "1,1,"), "accepted"),
    "text in a numeric column": (lines(*TABLE, "many,1,a"), "refused"),
    "infinite": (lines(*TABLE, "inf,1,a"), "refused"),
    "NaN": (lines(*TABLE, "nan,1,a"), "refused"),
    "a field too many": (lines(*TABLE, "1,1,a,b"), "refused"),
    "a field too few": (lines(*TABLE, "1,1"), "refused"),
    "bytes": (b"\xff\xfe\x00\x01" * 50, "refused"),
    "one row": (lines("x,z,y", "1,2,a"), "refused"),
    "constant column": (
        lines("x,z,y", *(f"1,{n},{'ab'[n % 2]}" for n in range(40))),
        "either",
    ),
    "huge number": (lines(*TABLE, f"{'9' * 400},1,a"), "refused"),
    "semicolons": (lines(*TABLE).replace(b",", b";"), "either"),
}


def write_table(content: bytes, folder: Path) -> None:
    """Write the table with this content."""
    (folder / "train.csv").write_bytes(content)


def table_cases(trained: Trained) -> Iterator[Case]:
    """Tables."""
    arguments = [
        "fit",
        *configs(
            "trainer.yaml", "data/tabular.yaml", "teachers/breast_cancer_mlp.yaml"
        ),
        *configs("loggers/csv.yaml"),
        *SHORT,
        "--data.root=.",
        "--data.file=train.csv",
        "--data.target=y",
        "--data.batch_size=8",
    ]
    for name, (content, expected) in TABLES.items():
        prepare = partial(write_table, content)
        yield Case("tables", name, arguments, prepare, expected)  # type: ignore[arg-type]


def write_mnist(change: Prepare, folder: Path) -> None:
    """Blank images in MNIST's format and number, then a change."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + bytes(count * 784)
        labels = struct.pack(">II", 2049, count) + bytes(n % 10 for n in range(count))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    change(raw)


MNIST: dict[str, Prepare] = {
    "good": nothing,
    "images cut": put(
        "train-images-idx3-ubyte",
        struct.pack(">IIII", 2051, 60_000, 28, 28) + bytes(99),
    ),
    "images empty": put("train-images-idx3-ubyte", b""),
    "wrong magic": put("train-images-idx3-ubyte", bytes(4000)),
    "labels above nine": put(
        "train-labels-idx1-ubyte",
        struct.pack(">II", 2049, 60_000) + bytes([99] * 60_000),
    ),
    "labels too few": put(
        "train-labels-idx1-ubyte", struct.pack(">II", 2049, 5) + bytes(5)
    ),
    "declares too many": put(
        "train-images-idx3-ubyte", struct.pack(">IIII", 2051, 2**31 - 1, 28, 28)
    ),
    "test missing": remove("t10k-images-idx3-ubyte"),
}


def mnist_cases(trained: Trained) -> Iterator[Case]:
    """Files in MNIST's format."""
    arguments = [
        "fit",
        *configs("trainer.yaml", "data/mnist.yaml", "teachers/mnist_mlp1200.yaml"),
        *configs("loggers/csv.yaml"),
        *SHORT,
        "--data.root=.",
        "--data.download=false",
    ]
    for name, change in MNIST.items():
        prepare = partial(write_mnist, change)
        expected = "accepted" if name == "good" else "refused"
        yield Case("images", f"MNIST {name}", arguments, prepare, expected)  # type: ignore[arg-type]


GROUPS = (image_cases, text_cases, table_cases, mnist_cases)
