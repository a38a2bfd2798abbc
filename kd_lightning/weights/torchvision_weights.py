"""The pretrained weights that torchvision names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kd_lightning.errors import UserError

_NAME = re.compile(r"\w+_Weights\.\w+")


class TorchvisionWeights(Protocol):
    """The part of `torchvision.models.WeightsEnum` in use."""

    url: str
    meta: dict[str, Any]

    def get_state_dict(
        self, *, progress: bool, check_hash: bool
    ) -> Mapping[str, Tensor]:
        """The weights, from torchvision's cache or downloaded."""

    def transforms(self) -> object:
        """The preprocessing of the images that the weights were trained on."""


def is_torchvision_name(name: str) -> bool:
    """Whether a name has the form of a torchvision weights enum."""
    return _NAME.fullmatch(name) is not None


def torchvision_enum(name: str) -> TorchvisionWeights:
    """The torchvision weights of a name.

    Args:
        name: such as `ResNet18_Weights.IMAGENET1K_V1`.

    Raises:
        UserError: if there are none.
    """
    from torchvision import models

    try:
        enum: TorchvisionWeights = models.get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"torchvision has no weights {name!r}; a valid name looks like "
            "ResNet18_Weights.IMAGENET1K_V1"
        ) from error
    return enum


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's weights, from its cache or downloaded.

    Args:
        name: such as `ResNet18_Weights.IMAGENET1K_V1`.

    Raises:
        UserError: if there are no such weights, or if they cannot be downloaded.
    """
    enum = torchvision_enum(name)
    with torchvision_download(name, enum.url):
        return dict(enum.get_state_dict(progress=False, check_hash=True))


@contextmanager
def torchvision_download(name: str, url: str) -> Iterator[None]:
    """Read torchvision's weights in this context; a download is announced on standard output.

    Args:
        name: of the weights.
        url: of their file.

    Raises:
        UserError: if the weights cannot be read.
    """
    try:
        # torch announces it on standard error, which is left to errors.
        with redirect_stderr(sys.stdout):
            yield
    except Exception as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights {name} are not in torchvision's cache and cannot be downloaded; "
            f"without a network, put {url} into {folder}"
        ) from error
