"""Damaged files are found by their checksums, and sizes are checked before anything is read."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.weights import load_file_weights, read_file
from kd_lightning.weights.integrity import damage_of
from tests.training.small import complaint, copied, mlp

OLD = Path(__file__).parents[1] / "fixtures" / "version_0_1" / "teacher.ckpt"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"state_dict": copied(mlp())}, tmp_path / "file.pt")
    return tmp_path / "file.pt"


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def tensor_positions(path: Path) -> list[int]:
    """The positions of all bytes of tensors in a file of torch."""
    positions: list[int] = []
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            folder, _, name = record.filename.rpartition("/")
            if folder.endswith("data") and name.isdecimal():
                with path.open("rb") as file:
                    file.seek(record.header_offset + 26)
                    name_bytes = int.from_bytes(file.read(2), "little")
                    extra_bytes = int.from_bytes(file.read(2), "little")
                start = record.header_offset + 30 + name_bytes + extra_bytes
                positions.extend(range(start, start + record.file_size))
    return positions


@pytest.mark.parametrize("origin", ["foreign", "version 0.1"])
def test_every_flipped_bit_of_a_tensor_is_found(origin: str, path: Path) -> None:
    if origin == "version 0.1":
        shutil.copy(OLD, path)
    positions = tensor_positions(path)
    assert len(positions) > 4_000
    assert damage_of(path) is None
    draw = random.Random(0)
    for _ in range(40):
        position = draw.choice(positions)
        bit = draw.randrange(8)
        flip(path, position, bit)
        message = complaint(lambda: read_file(path, "the teacher"))
        assert "the teacher: " in message
        assert "it is corrupt: the checksum of its record" in message
        flip(path, position, bit)
    read_file(path, "the teacher")


def test_a_flip_anywhere_ends_in_one_line_or_in_the_same_weights(path: Path) -> None:
    draw = random.Random(1)
    size = path.stat().st_size
    expected = read_file(path, "here")["state_dict"]
    for _ in range(60):
        position = draw.randrange(size)
        flip(path, position, 3)
        try:
            state = read_file(path, "here")["state_dict"]
        except UserError:
            state = expected
        # A flip in the padding between records changes nothing.
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        flip(path, position, 3)


def test_files_without_checksums_still_load(tmp_path: Path) -> None:
    state = copied(mlp())
    computes = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "no_crc.pt")
    finally:
        torch.serialization.set_crc32_options(computes)
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("no_crc.pt", "legacy.pt"):
        load_file_weights(mlp(), read_file(tmp_path / name, "here"), "here")


def test_a_zip_that_inflates(path: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            data = source.read(record)
            if record.filename.endswith("data/0"):
                data = bytes(50_000_000)
            target.writestr(record.filename, data)
    assert bomb.stat().st_size < 1_000_000
    message = complaint(lambda: read_file(bomb, "the teacher"))
    assert "it declares 50," in message
    assert "bytes of content in a file of" in message


def test_a_size_that_the_file_does_not_hold(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1_000)}
    legacy = tmp_path / "legacy.pt"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    # The number of elements is a pickled 16-bit integer.
    data = legacy.read_bytes().replace(b"M\xe8\x03", b"M\xff\xff")
    legacy.write_bytes(data)
    assert "cannot be read (it is corrupt)" in complaint(
        lambda: read_file(legacy, "here")
    )


@pytest.mark.parametrize("kept", [4, 200, -30])
def test_a_zip_that_was_cut_short(kept: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read (it is corrupt" in complaint(lambda: read_file(path, "here"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("\n<!DOCTYPE html><title>404</title>", "it is a web page, not the file"),
        ("<html>", "download it again"),
    ],
)
def test_what_a_failed_download_leaves(
    content: str, message: str, tmp_path: Path
) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_text(content)
        assert message in complaint(lambda: read_file(tmp_path / name, "the teacher"))  # noqa: B023
