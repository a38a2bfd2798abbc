"""What a network expects of the images that it reads, as far as anything says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.values import Value, Values

PROCESSOR_FILE = "preprocessor_config.json"
"""The file beside a Hugging Face model that describes its image processor."""


@dataclass(frozen=True)
class Preprocessing:
    """The images that a network was trained on; `None` for what is not known.

    Attributes:
        mean, std: per channel, of pixel values in [0, 1].
        size: height and width in pixels.
        channels: 1 for gray, 3 for color.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None

    @classmethod
    def of_spec(cls, spec: Spec | None) -> Preprocessing:
        """The images of a data set; nothing is known of data that is no images.

        Args:
            spec: of the data, if it is known.
        """
        if spec is None or spec.input_shape is None:
            return cls()
        if len(spec.input_shape) != 3:
            return cls()
        channels, height, width = spec.input_shape
        return cls(spec.mean, spec.std, (height, width), channels)

    def overridden_by(self, other: Preprocessing) -> Preprocessing:
        """The same with all that `other` knows in place of its own.

        Args:
            other: what a better source says.
        """
        known = {}
        for name, value in vars(other).items():
            if value is not None:
                known[name] = value
        return replace(self, **known)


# -- what other libraries say ----------------------------------------------------------------------


@runtime_checkable
class TimmNetwork(Protocol):
    """A network of timm: its configuration says how its pretrained weights were trained."""

    pretrained_cfg: Values


@runtime_checkable
class TransformersConfig(Protocol):
    """The configuration of a Hugging Face model."""

    name_or_path: str


def of_torchvision(transforms: nn.Module) -> Preprocessing:
    """What `weights.transforms()` of torchvision does to an image; nothing if it is no image preset.

    Args:
        transforms: the preset, with `mean`, `std` and `crop_size` or `resize_size`.
    """
    settings = vars(transforms)
    # The crop is what the network sees; some presets only resize.
    size = settings.get("crop_size") or settings.get("resize_size")
    return Preprocessing(
        mean=_numbers(settings.get("mean")),
        std=_numbers(settings.get("std")),
        size=_size(size),
        channels=_channels(settings.get("mean")),
    )


def of_timm(network: nn.Module) -> Preprocessing:
    """What timm says of the weights of a network; nothing if it is not one of timm.

    Args:
        network: any network.
    """
    config = getattr(network, "pretrained_cfg", None)
    if not isinstance(network, TimmNetwork) or not isinstance(config, Mapping):
        return Preprocessing()
    channels = None
    size = None
    shape = config.get("input_size")
    if isinstance(shape, Sequence):
        channels = int(shape[0])
        size = _size(shape[1:])
    return Preprocessing(
        mean=_numbers(config.get("mean")),
        std=_numbers(config.get("std")),
        size=size,
        channels=channels,
    )


def of_network(network: nn.Module) -> Preprocessing:
    """What timm or Hugging Face say of a network that came with its weights.

    A network of timm with another head than its pretrained weights was trained on something else.

    Args:
        network: any network.
    """
    known = of_timm(network) if has_original_head(network) else Preprocessing()
    return known.overridden_by(of_processor(folder_of(network)))


def of_file(path: Path, network: nn.Module) -> Preprocessing:
    """What is known of the images behind a bare file of weights: its neighbors, or timm.

    Args:
        path: of the file.
        network: that the weights belong to.
    """
    known = of_timm(network) if has_original_head(network) else Preprocessing()
    # Hugging Face stores the weights beside the processor's description.
    return known.overridden_by(of_processor(path.parent))


def of_arguments(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_size: Sequence[int] | None,
) -> Preprocessing:
    """The preprocessing that a user states.

    Raises:
        UserError: for a size that is not two positive integers, or a std that is not positive.
    """
    if input_size is not None:
        is_size = len(input_size) == 2 and min(input_size) >= 1
        if not is_size:
            raise UserError(
                f"the teacher's input_size must be height and width, got {list(input_size)}"
            )
    if std is not None and not all(value > 0 for value in std):
        raise UserError(f"the teacher's std must be greater than 0, got {list(std)}")
    return Preprocessing(mean=_numbers(mean), std=_numbers(std), size=_size(input_size))


def has_original_head(network: nn.Module) -> bool:
    """Whether a network of timm has as many classes as its pretrained weights."""
    # A new head was trained on other data, perhaps with other preprocessing.
    config = getattr(network, "pretrained_cfg", None)
    classes = getattr(network, "num_classes", None)
    return isinstance(config, Mapping) and config.get("num_classes") == classes


def folder_of(network: nn.Module) -> Path | None:
    """The folder that a Hugging Face model was read from; `None` if it is not known."""
    config = getattr(network, "config", None)
    if not isinstance(config, TransformersConfig) or not config.name_or_path:
        return None
    return Path(config.name_or_path)


def of_processor(folder: Path | None) -> Preprocessing:
    """What the image processor in a Hugging Face model's folder does; nothing if there is none."""
    if folder is None:
        return Preprocessing()
    # The file is a description, not a part of the network: if it is damaged, nothing is known.
    try:
        settings = json.loads((folder / PROCESSOR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Preprocessing()
    if not isinstance(settings, dict):
        return Preprocessing()
    mean = None
    std = None
    if settings.get("do_normalize", True):
        mean = _numbers(settings.get("image_mean"))
        std = _numbers(settings.get("image_std"))
    # The network sees what the last step leaves: the crop, if there is one.
    crops = settings.get("do_center_crop", False)
    size = settings.get("crop_size") if crops else settings.get("size")
    # Whatever size the images have stays then.
    if not settings.get("do_resize", True) and not crops:
        size = None
    return Preprocessing(
        mean=mean,
        std=std,
        size=_size(size),
        channels=_channels(settings.get("image_mean")),
    )


def _numbers(values: Value | Tensor) -> tuple[float, ...] | None:
    """A mean or standard deviation per channel."""
    if isinstance(values, Tensor):
        values = cast(Value, values.tolist())
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    numbers = cast(Sequence[float], values)
    return tuple(float(number) for number in numbers)


def _channels(values: Value | Tensor) -> int | None:
    """How many channels a mean is for."""
    numbers = _numbers(values)
    if numbers is None:
        return None
    return len(numbers)


def _size(size: Value) -> tuple[int, int] | None:
    """Height and width from an edge, a pair, or a mapping as Hugging Face writes it."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    # One edge stands for a square.
    if isinstance(size, int):
        size = [size]
    if not isinstance(size, Sequence) or not size:
        return None
    height = size[0]
    width = size[-1]
    if not all(isinstance(edge, int) for edge in size):
        return None
    return int(cast(int, height)), int(cast(int, width))
