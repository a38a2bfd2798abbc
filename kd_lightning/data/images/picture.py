"""Decodes one image file to the pixels that an image viewer shows.

- The EXIF orientation is applied; a damaged EXIF block counts as none.
- Transparent pixels are composited over white.
- 16-bit gray images are scaled to 8 bits by 255 / 65535, without stretching their contrast.
- Of a file with several images, such as an animation, the first one counts.

Color profiles are not applied.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image

from kd_lightning.errors import UserError

DECODER_VERSION = 2
"""Increases with every change of decoded pixels. Stored decoded images are named after it."""

MAX_PIXELS = 89_478_485
"""The most pixels of an image, Pillow's own limit: a quarter of a gigabyte in RGB."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read, whatever the suffix of a file.

Decoders that start other programs, such as Ghostscript for EPS, are not among them.
"""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


def open_picture(content: bytes, owner: str) -> Image.Image:
    """Decode a file to the values it stores, turned upright.

    Args:
        content: of the file.
        owner: what an error message calls the file.

    Raises:
        UserError: if the content is no image, is damaged, or declares too many pixels.
    """
    # Pillow warns about large images and damaged metadata with several lines each.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # The size is known before any pixel is decoded.
        check_size(image.width * image.height, owner)
        image.load()
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(owner)) from error
    # Decoders raise any exception, depending on the broken bytes.
    except Exception as error:
        raise UserError(
            f"{owner} cannot be read as an image; is the copy complete?"
        ) from error
    transpose = _UPRIGHT.get(_orientation(image))
    if transpose is None:
        return image
    return image.transpose(transpose)


def check_size(pixels: int, owner: str) -> None:
    """Check that an image does not have too many pixels.

    Args:
        pixels: width times height.
        owner: what an error message calls the image.

    Raises:
        UserError: if there are more than `MAX_PIXELS`.
    """
    if pixels > MAX_PIXELS:
        raise UserError(_too_large(owner))


def _too_large(owner: str) -> str:
    return f"{owner} has more than {MAX_PIXELS:,} pixels; shrink the image, or remove the file"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A viewer ignores a block that it cannot parse.
    except Exception:
        return 1


def as_shown(image: Image.Image, grey: bool, owner: str) -> Image.Image:
    """Convert an image to the 8-bit pixels that a viewer shows.

    Args:
        image: of any of Pillow's modes, from `open_picture`.
        grey: convert to one channel (mode `L`) instead of three (mode `RGB`).
        owner: what an error message calls the image.

    Raises:
        UserError: for pixel values whose brightness is not defined.
    """
    image = _to_eight_bits(image, owner)
    if image.has_transparency_data:
        image = _over_white(image)
    try:
        return image.convert("L" if grey else "RGB")
    except ValueError as error:
        raise UserError(
            f"{owner} has pixels of the kind {image.mode}; convert it to RGB"
        ) from error


def _over_white(image: Image.Image) -> Image.Image:
    """An image with transparent pixels, composited over white; mode `RGB`."""
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _to_eight_bits(image: Image.Image, owner: str) -> Image.Image:
    """An image of whole or real numbers as mode `L`; other images are returned unchanged.

    Pillow's own conversion clips these numbers at 255.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(
                f"{owner} has whole-number pixels outside 0 to 65535; convert it to 8 or 16 bits"
            )
        scaled = ((values * 255 + 65535 // 2) // 65535).astype(np.uint8)
        # A PNG may name one gray value that is transparent.
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            scaled[values == transparent] = 255
        return Image.fromarray(scaled)
    if image.mode == "F":
        reals = np.asarray(image)
        # Written so that NaN is refused, too.
        if not ((reals >= 0) & (reals <= 1)).all():
            raise UserError(
                f"{owner} has real-valued pixels outside [0, 1]; convert it to 8 or 16 bits"
            )
        return Image.fromarray((reals * 255).round().astype(np.uint8))
    return image
