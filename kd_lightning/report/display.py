"""Test samples as pictures or texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.report.blocks import Legend, Picture
from kd_lightning.report.figures import COLORS

CLASS_COLORS = (
    *COLORS,
    *("#1b4f8a", "#f4b183", "#8fd6a4", "#7d1f2b", "#d2bdf0"),
    *("#4a3526", "#f2a7dc", "#3d4349", "#e6e36a", "#0f5f66"),
)
"""Of the classes of pixels; from the 21st class they repeat."""

OVERLAY_SHARE = 0.55
"""How much of a pixel's color is that of its class, where an image is segmented."""


@dataclass(frozen=True)
class Shown:
    """How one sample is shown.

    Attributes:
        pictures: of an image; several if its pixels have classes.
        text: of a text; empty for others.
    """

    pictures: Sequence[Picture] = ()
    text: str = ""


def show(
    datamodule: DataModule,
    index: Tensor,
    stored: Mapping[str, Tensor],
) -> list[Shown]:
    """Show test samples through what their data offers for that.

    Args:
        datamodule: of the run.
        index: int64 `(n,)`, rows of the test split.
        stored: what the test stored; maps of classes are drawn over their images.

    Returns:
        One per sample, or an empty list if the data is neither images nor texts.
    """
    images = datamodule.images_for_display(index)
    if images is not None:
        return _images(images, index, stored, datamodule)
    texts = datamodule.texts_for_display(index)
    if texts is not None:
        return [Shown(text=text) for text in texts]
    return []


def _images(
    images: Tensor,
    index: Tensor,
    stored: Mapping[str, Tensor],
    datamodule: DataModule,
) -> list[Shown]:
    """Images `(n, C, H, W)`, each with its segmentation if the test stored one."""
    maps = stored.get("classes")
    # A test of a segmentation stores a class for each pixel.
    has_maps = maps is not None and maps.ndim == 3
    labels = datamodule.source("test").target if has_maps else None
    position_of_row = _positions(stored["index"])
    shown = []
    for image, row in zip(images, index.tolist(), strict=True):
        pixels = _bytes(image)
        pictures = [Picture(_uri(pixels), f"test sample {row}")]
        if maps is not None and labels is not None:
            predicted = _overlay(pixels, maps[position_of_row[row]])
            right = _overlay(pixels, labels[row])
            pictures.append(Picture(_uri(predicted), f"prediction for sample {row}"))
            pictures.append(Picture(_uri(right), f"labels of sample {row}"))
        shown.append(Shown(pictures=pictures))
    return shown


def _positions(index: Tensor) -> dict[int, int]:
    """The position of each row of the test split among the stored samples."""
    positions = {}
    for position, row in enumerate(index.tolist()):
        positions[row] = position
    return positions


def _bytes(image: Tensor) -> Tensor:
    """An image as uint8; real values, as in a spectrogram, are stretched to 0 to 255.

    Args:
        image: `(C, H, W)`.
    """
    if image.dtype == torch.uint8:
        return image
    values = image.double()
    low = values.min()
    span = (values.max() - low).clamp(min=1e-12)
    return ((values - low) / span * 255).round().to(torch.uint8)


def _overlay(pixels: Tensor, classes: Tensor) -> Tensor:
    """An image with the color of a class over each of its pixels.

    Args:
        pixels: uint8 `(C, H, W)`.
        classes: `(H, W)`; pixels below 0 have no class and keep their color.
    """
    # More classes than colors share them, which the legend shows.
    palette = torch.tensor([_rgb(color) for color in CLASS_COLORS])
    # Void pixels are negative; they take any color, and do not show it.
    numbers = classes.long().clamp(min=0) % len(CLASS_COLORS)
    colors = palette[numbers].movedim(-1, 0)
    base = pixels.double().expand(3, *classes.shape)
    mixed = (1 - OVERLAY_SHARE) * base + OVERLAY_SHARE * colors
    has_class = (classes >= 0).expand(3, *classes.shape)
    return torch.where(has_class, mixed, base).round().to(torch.uint8)


def legend(names: Sequence[str]) -> Legend:
    """The colors of the classes of pixels.

    Args:
        names: of the classes.
    """
    entries = []
    for number, name in enumerate(names):
        entries.append((CLASS_COLORS[number % len(CLASS_COLORS)], name))
    return Legend(entries)


def _rgb(color: str) -> list[float]:
    """A color such as #3b82c4 as three numbers up to 255."""
    return [float(int(color[at : at + 2], 16)) for at in (1, 3, 5)]


def _uri(pixels: Tensor) -> str:
    """An image as a PNG in a `data:` URI.

    Args:
        pixels: uint8 `(C, H, W)`; gray if C is 1, else the first three are colors.
    """
    # A picture is gray or RGB; further channels have no color.
    channels = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    array = channels.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG")
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/png;base64,{text}"
