"""Images without labels, for `kd predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kd_lightning.data.images.decoding import Pixels, decode_chunks, decode_image
from kd_lightning.data.images.listing import SUFFIXES, is_image, report_skipped
from kd_lightning.data.images.source import Images
from kd_lightning.data.images.tree import open_tree
from kd_lightning.errors import UserError
from kd_lightning.types import UNLABELLED

PREDICTS = "predict"
"""The split of the images to predict."""


def read_new_images(
    folder: Path,
    size: int | None,
    grey: bool,
    expected: Sequence[int],
) -> tuple[list[str], Images]:
    """Decode all images of a folder or a zip, at any depth, in the order of their names.

    Args:
        folder: path of the folder or the zip.
        size: resize the shorter side to this and crop the central square; `None`: unchanged.
        grey: decode to one channel instead of three.
        expected: height and width that the network reads.

    Returns:
        The names of the files, and the images, whose labels are all unknown.

    Raises:
        UserError: if there is no image, or if one cannot be read or has another size.
    """
    if not folder.exists():
        raise UserError(f"data.predict_folder: there is no folder or zip {folder}")
    tree = open_tree(folder, keep_top=True)
    names = sorted(name for name in tree.files if is_image(name))
    if not names:
        suffixes = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UserError(f"data.predict_folder: {folder} holds no image ({suffixes})")
    others = [name for name in tree.files if not is_image(name)]
    report_skipped(tree, others, "that have no suffix of an image")

    def decode(name: str) -> Pixels:
        pixels = decode_image(tree, name, size, grey)
        height, width = pixels.shape[1:]
        if [height, width] != list(expected):
            raise UserError(
                f"data.predict_folder: {name} is {width}x{height}, the training images are "
                f"{expected[1]}x{expected[0]}; set --data.size as in training, or resize it"
            )
        return pixels

    chunks = list(decode_chunks(names, decode))
    images = torch.from_numpy(np.concatenate(chunks))
    return names, Images(images, torch.full((len(names),), UNLABELLED))
