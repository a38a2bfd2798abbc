"""Images are decoded to the pixels that an image viewer shows, by every reader."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from kd_lightning.data import ImageFolderDataModule, SegmentationDataModule
from kd_lightning.data.images import image_cache, picture
from kd_lightning.data.images.picture import as_shown, open_picture
from kd_lightning.errors import UserError
from tests.data.images.camvid import CLASSES, VOID, draw, write_camvid, write_pair
from tests.data.images.folders import picture as random_picture
from tests.data.images.folders import write_folder
from tests.runs import python_warnings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(content: bytes, grey: bool = False) -> NDArray[np.uint8]:
    image = as_shown(open_picture(content, "x.png"), grey, "x.png")
    assert image.mode == ("L" if grey else "RGB")
    return np.asarray(image)


def refusal(content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        shown(content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.png")
    return str(caught.value)


# -- bit depth ----------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257], [300, 32768, 65407, 65535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 1], [1, 128, 255, 255]])
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    for kind in ("PNG", "TIFF", "PPM"):
        content = encoded(image, kind)
        assert np.array_equal(shown(content, grey=True), expected)
        assert np.array_equal(shown(content), np.stack([expected] * 3, -1))


def test_big_endian_sixteen_bits() -> None:
    values = np.array([[0, 257, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert shown(encoded(image, "TIFF"), grey=True).tolist() == [[0, 1, 255]]


def test_whole_numbers_beyond_sixteen_bits_are_refused() -> None:
    for values in ([[0, 65536]], [[-1, 5]]):
        image = Image.fromarray(np.array(values, dtype=np.int32))
        assert "outside 0 to 65535; convert it" in refusal(encoded(image, "TIFF"))


def test_real_numbers_in_the_unit_interval_are_scaled_and_others_refused() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert shown(encoded(image, "TIFF"), grey=True).tolist() == [[0, 128, 255]]
    for wrong in (255.0, -0.1, float("nan")):
        values = np.array([[0.0, wrong]], dtype=np.float32)
        assert "outside [0, 1]" in refusal(encoded(Image.fromarray(values), "TIFF"))


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert shown(encoded(image), grey=True).tolist() == [[255, 0]]


# -- transparency -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str) -> None:
    """A black drawing: opaque, half transparent, and a transparent background."""
    black = Image.new("L", (3, 1), 0)
    alpha = Image.fromarray(np.array([[255, 128, 0]], dtype=np.uint8))
    image = Image.merge("LA", (black, alpha)).convert(mode)
    content = encoded(image)
    assert shown(content, grey=True).tolist() == [[0, 127, 255]]
    assert shown(content)[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_opaque_pixels_do_not_change() -> None:
    image = random_picture(0, 40, 40)
    with_alpha = image.copy()
    with_alpha.putalpha(255)
    assert np.array_equal(shown(encoded(with_alpha)), np.asarray(image))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_color_that_the_file_declares_transparent_is_white(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    transparent: int | tuple[int, int, int] = 0
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
        image.putpalette([0, 0, 0, 1, 1, 1])
    elif mode == "RGB":
        image = image.convert("RGB")
        transparent = (0, 0, 0)
    content = encoded(image, transparency=transparent)
    assert shown(content, grey=True).tolist() == [[255, 1]]
    assert shown(encoded(image), grey=True).tolist() == [[0, 1]]


def test_a_transparent_value_of_sixteen_bits() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HH", 1000, 257))
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", b"\x03\xe8")
    )
    content += chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert shown(content, grey=True).tolist() == [[255, 1]]


def test_the_first_image_of_an_animation_counts() -> None:
    first = Image.new("P", (2, 2), 0)
    first.putpalette([10, 20, 30, 200, 0, 0])
    second = Image.new("P", (2, 2), 1)
    second.putpalette([10, 20, 30, 200, 0, 0])
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert shown(content)[0, 0].tolist() == [10, 20, 30]


# -- orientation and color ----------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # How a camera stores the upright image under each orientation.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(
        Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes()
    )
    assert np.array_equal(shown(content, grey=True), upright)


def test_a_damaged_exif_block_is_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    for block in (
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\1\0",
        b"no TIFF header",
    ):
        content = encoded(random_picture(1), "JPEG", exif=b"Exif\0\0" + block)
        with python_warnings():
            assert shown(content).shape == (6, 6, 3)
    assert capfd.readouterr().err == ""


def test_cmyk_and_palettes() -> None:
    cyan = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert shown(encoded(cyan, "TIFF"))[0, 0].tolist() == [0, 255, 255]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert shown(encoded(palette))[0, 0].tolist() == [10, 20, 30]


def test_the_difficult_real_files(data_root: Path) -> None:
    folder = data_root / "imagenet-photos" / "difficult"
    if not folder.is_dir():
        pytest.skip("no imagenet-photos in the data root")
    upright = shown((folder / "hopper.jpg").read_bytes()).astype(int)
    for orientation in range(2, 9):
        content = (folder / f"hopper_orientation_{orientation}.jpg").read_bytes()
        assert np.abs(shown(content).astype(int) - upright).mean() < 8
    # Photos with a bright sky; inverted, the sky would be dark.
    assert shown((folder / "ycck.jpg").read_bytes()).mean() > 60
    assert shown((folder / "jpg-size-6x6.jpg").read_bytes()).shape == (6, 6, 3)
    assert "is the copy complete" in refusal(
        (folder / "truncated_jpeg.jpg").read_bytes()
    )


# -- what is refused ----------------------------------------------------------------------------


def declared(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost no pixels."""
    content = bytearray(encoded(Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("side", [9_460, 13_000, 14_000, 2**31 - 1])
def test_too_many_pixels_are_one_line(
    side: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with python_warnings():
        assert "has more than 89,478,485 pixels" in refusal(declared(side, side))
    assert capfd.readouterr().err == ""


def test_the_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_PIXELS", 35)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    assert "has more than 35 pixels" in refusal(encoded_before_patch)


encoded_before_patch = encoded(random_picture(0))


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_content_is_no_image(content: bytes) -> None:
    assert "cannot be read as an image" in refusal(content)


# -- every reader -------------------------------------------------------------------------------


def test_folders_and_zips_show_what_a_viewer_shows(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    deep = np.full((6, 6), 65535, dtype=np.uint16)
    deep[:, 3:] = 30000
    Image.fromarray(deep).save(root / "train" / "ant" / "0.png")
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(root / "train" / "bee" / "0.png")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", root)
    for path in (root, Path(archive)):
        images = ImageFolderDataModule(str(path)).raw("train").images
        assert images[0, :, 0].unique().tolist() == [117, 255]
        assert images[1].unique().tolist() == [255]


def test_segmentation_shows_what_a_viewer_shows_and_keeps_codes(tmp_path: Path) -> None:
    root = write_camvid(tmp_path / "small", train=2, val=0, test=1)
    image, mask = draw(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    write_pair(root, "train", "00", image, mask)
    image.rotate(180).save(root / "train" / "images" / "00.png", exif=exif.tobytes())
    mask.rotate(180).save(root / "train" / "labels" / "00.png", exif=exif.tobytes())
    Image.new("RGBA", image.size, (0, 0, 0, 0)).save(
        root / "train" / "images" / "01.png"
    )
    data = SegmentationDataModule(
        str(root),
        {**CLASSES},
        [VOID],
        masks="labels",
        validation=0.0,
        mean=[0, 0, 0],
        std=[1, 1, 1],
    )
    batch = data.source("train").batch(torch.arange(2), -1)
    assert isinstance(batch.inputs, torch.Tensor)
    pixels = (batch.inputs * 255).round().long()
    assert torch.equal(
        pixels[0], torch.from_numpy(np.array(image)).long().permute(2, 0, 1)
    )
    assert torch.equal(batch.target[0] >= 0, torch.from_numpy(np.array(mask)) != VOID)
    assert pixels[1].unique().tolist() == [255]
    assert data.spec.mean == (0, 0, 0)


def test_images_of_another_decoder_are_decoded_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    ImageFolderDataModule(str(root))
    monkeypatch.setattr(image_cache, "DECODER_VERSION", picture.DECODER_VERSION + 1)
    ImageFolderDataModule(str(root))
    folders = [path for path in (cache / "images").iterdir() if path.is_dir()]
    assert len(folders) == 2
