"""Four rotations of each draw of other augmentations, as views of their own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation
from kd_lightning.errors import UserError

TURNS = 4
"""Rotations by 0, 90, 180 and 270 degrees."""


class Rotations(Augmentation):
    """Shows each draw of other augmentations in four rotations.

    View v is draw v // 4 of `augment`, turned counterclockwise by (v mod 4) * 90 degrees. With
    `data.copies=4` a batch holds each image and its three rotations, all of the same crop.
    Augmentations that are listed beside this one, and not in it, are drawn for each view.

    A turned image has no class of its own unless `keep_labels` is set: it is served as unlabelled,
    so that hard losses and metrics ignore it. The pixels of a turned mask keep their classes.

    Source: Xu et al. 2020, arXiv 2006.07114.

    Args:
        augment: applied before the rotation, in this order; each must be geometric.
        keep_labels: whether a turned image keeps the class of its original.

    Raises:
        UserError: if one of `augment` changes the values of pixels; from a call, if the images are
            not square.
    """

    geometric: ClassVar[bool] = True

    def __init__(
        self, augment: list[Augmentation] | None = None, keep_labels: bool = False
    ) -> None:
        self.augment = list(augment or [])
        self.keep_labels = keep_labels
        for inner in self.augment:
            if not inner.geometric:
                raise UserError(
                    f"Rotations: {type(inner).__name__} is not geometric; list it in data.augment "
                    "beside Rotations"
                )

    def __call__(self, images: Tensor, index: Tensor, seed: int, view: int) -> Tensor:
        height, width = images.shape[-2:]
        if height != width:
            raise UserError(
                f"Rotations needs square images, got {height} x {width} pixels"
            )
        draw = view // TURNS
        for inner in self.augment:
            images = inner(images, index, seed, draw)
        return torch.rot90(images, view % TURNS, dims=(-2, -1))

    def keeps_label(self, view: int) -> bool:
        return self.keep_labels or view % TURNS == 0

    def fingerprint(self) -> dict[str, object]:
        inner = [augmentation.fingerprint() for augmentation in self.augment]
        return {**super().fingerprint(), "augment": inner}
