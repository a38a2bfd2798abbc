"""What a network expects of its inputs, and how the student's inputs are adapted to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.types import Batch

PROCESSOR_FILE = "preprocessor_config.json"
"""The file beside a Hugging Face model that describes its image processor."""

RGB = 3


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
        """The images of a data set; nothing is known of data that is no images."""
        if spec is None or spec.input_shape is None or len(spec.input_shape) != 3:
            return cls()
        channels, height, width = spec.input_shape
        return cls(spec.mean, spec.std, (height, width), channels)

    def overridden_by(self, other: Preprocessing) -> Preprocessing:
        """The same with all that `other` knows in place of its own."""
        known = {name: value for name, value in vars(other).items() if value is not None}
        return replace(self, **known)


# -- what other libraries say ----------------------------------------------------------------------


@runtime_checkable
class TimmNetwork(Protocol):
    """A network of timm: its configuration says how its pretrained weights were trained."""

    pretrained_cfg: Mapping[str, object]


@runtime_checkable
class TransformersConfig(Protocol):
    """The configuration of a Hugging Face model."""

    name_or_path: str


def of_torchvision(transforms: object) -> Preprocessing:
    """What `weights.transforms()` of torchvision does to an image; nothing if it is no image preset.

    Args:
        transforms: the preset, with `mean`, `std` and `crop_size` or `resize_size`.
    """
    settings = vars(transforms)
    size = settings.get("crop_size") or settings.get("resize_size")
    return Preprocessing(
        mean=_numbers(settings.get("mean")),
        std=_numbers(settings.get("std")),
        size=_size(size),
        channels=_channels(settings.get("mean")),
    )


def of_timm(network: object) -> Preprocessing:
    """What timm says of the weights of a network; nothing if it is not one of timm."""
    config = getattr(network, "pretrained_cfg", None)
    if not isinstance(network, TimmNetwork) or not isinstance(config, Mapping):
        return Preprocessing()
    shape = config.get("input_size")
    size = shape[1:] if isinstance(shape, Sequence) else None
    return Preprocessing(
        mean=_numbers(config.get("mean")),
        std=_numbers(config.get("std")),
        size=_size(size),
        channels=int(shape[0]) if isinstance(shape, Sequence) else None,
    )


def of_network(network: object) -> Preprocessing:
    """What timm or Hugging Face say of a network that came with its weights."""
    return of_timm(network).overridden_by(of_processor(folder_of(network)))


def of_file(path: Path, network: object) -> Preprocessing:
    """What is known of the images behind a bare file of weights: its neighbors, or timm.

    A file whose network has another head than timm's weights was trained on something else.
    """
    known = of_timm(network) if has_original_head(network) else Preprocessing()
    return known.overridden_by(of_processor(path.parent))


def of_arguments(
    mean: Sequence[float] | None, std: Sequence[float] | None, input_size: Sequence[int] | None
) -> Preprocessing:
    """The preprocessing that a user states.

    Raises:
        UserError: for a size that is not two positive integers, or a std that is not positive.
    """
    if input_size is not None and (len(input_size) != 2 or min(input_size) < 1):
        raise UserError(
            f"the teacher's input_size must be height and width, got {list(input_size)}"
        )
    if std is not None and not all(value > 0 for value in std):
        raise UserError(f"the teacher's std must be greater than 0, got {list(std)}")
    return Preprocessing(mean=_numbers(mean), std=_numbers(std), size=_size(input_size))


def has_original_head(network: object) -> bool:
    """Whether a network of timm has as many classes as its pretrained weights."""
    config = getattr(network, "pretrained_cfg", None)
    classes = getattr(network, "num_classes", None)
    return isinstance(config, Mapping) and config.get("num_classes") == classes


def folder_of(network: object) -> Path | None:
    """The folder that a Hugging Face model was read from; `None` if it is not known."""
    config = getattr(network, "config", None)
    if not isinstance(config, TransformersConfig) or not config.name_or_path:
        return None
    return Path(config.name_or_path)


def of_processor(folder: Path | None) -> Preprocessing:
    """What the image processor in a Hugging Face model's folder does; nothing if there is none."""
    if folder is None:
        return Preprocessing()
    try:
        settings = json.loads((folder / PROCESSOR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Preprocessing()
    if not isinstance(settings, dict):
        return Preprocessing()
    normalizes = settings.get("do_normalize", True)
    crops = settings.get("do_center_crop", False)
    size = settings.get("crop_size") if crops else settings.get("size")
    if not settings.get("do_resize", True) and not crops:
        size = None
    return Preprocessing(
        mean=_numbers(settings.get("image_mean")) if normalizes else None,
        std=_numbers(settings.get("image_std")) if normalizes else None,
        size=_size(size),
        channels=_channels(settings.get("image_mean")),
    )


def _numbers(values: object) -> tuple[float, ...] | None:
    """A mean or standard deviation per channel."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    return tuple(float(value) for value in values)


def _channels(values: object) -> int | None:
    numbers = _numbers(values)
    return None if numbers is None else len(numbers)


def _size(size: object) -> tuple[int, int] | None:
    """Height and width from an edge, a pair, or a mapping as Hugging Face writes it."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    if isinstance(size, int):
        size = [size]
    if not isinstance(size, Sequence) or not size or not all(isinstance(n, int) for n in size):
        return None
    return int(size[0]), int(size[-1])


# -- adaptation ------------------------------------------------------------------------------------


class InputAdapter(nn.Module):
    """Turns the student's images into those that the teacher was trained on.

    Gray images are repeated as color. Pixels are normalized with the teacher's mean and standard
    deviation instead of the data's: $x' = (x s + m - m_t) / s_t$. The size changes by bilinear
    interpolation with antialiasing. The steps are linear, so gradients to the inputs flow.

    Args:
        data: what the data serves.
        network: what the teacher expects; `None` keeps what the data serves.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, data: Preprocessing, network: Preprocessing) -> None:
        super().__init__()
        self.channels = _more_channels(data, network)
        self.size = network.size if network.size not in (None, data.size) else None
        expected = data.overridden_by(network)
        self.renormalizes = not (
            _same_values(data.mean, expected.mean) and _same_values(data.std, expected.std)
        )
        scale = torch.ones(1)
        shift = torch.zeros(1)
        if self.renormalizes:
            data_mean = _double(data.mean)
            data_std = _double(data.std)
            mean = _double(expected.mean)
            std = _double(expected.std)
            scale = data_std / std
            shift = (data_mean - mean) / std
        # Not saved: they are functions of the teacher and the data.
        self.register_buffer("scale", scale.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(-1, 1, 1), persistent=False)
        self.note = self._describe(data, network)

    @property
    def changes_inputs(self) -> bool:
        """Whether the teacher expects anything else than the data serves."""
        return self.channels is not None or self.size is not None or self.renormalizes

    def settings(self) -> dict[str, object]:
        """What is changed, in plain values; a cache of the teacher's outputs depends on it."""
        return {
            "channels": self.channels,
            "size": None if self.size is None else list(self.size),
            "scale": self.scale.flatten().tolist(),
            "shift": self.shift.flatten().tolist(),
        }

    def _describe(self, data: Preprocessing, network: Preprocessing) -> str:
        """The changes as one line, such as `resized from 32 x 32 to 224 x 224`."""
        changes = []
        if self.channels is not None:
            changes.append("repeated from gray to color")
        if self.renormalizes:
            expected = data.overridden_by(network)
            changes.append(
                f"normalized by mean {_shown(expected.mean)} and std {_shown(expected.std)} "
                f"instead of {_shown(data.mean)} and {_shown(data.std)}"
            )
        if self.size is not None and data.size is not None:
            old = f"{data.size[0]} x {data.size[1]}"
            changes.append(f"resized from {old} to {self.size[0]} x {self.size[1]}")
        return ", ".join(changes)

    def forward(self, images: Tensor) -> Tensor:
        """Adapt images `(B, C, H, W)`."""
        if self.channels is not None:
            images = images.expand(-1, self.channels, -1, -1)
        if self.renormalizes:
            images = images * self.scale.to(images.dtype) + self.shift.to(images.dtype)
        if self.size is not None:
            images = F.interpolate(
                images, self.size, mode="bilinear", align_corners=False, antialias=True
            )
        return images

    def adapt(self, batch: Batch) -> Batch:
        """The batch as the teacher reads it; the student's own inputs stay as they are."""
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        assert isinstance(inputs, Tensor), "only images are adapted"
        return replace(batch, teacher_inputs=self.forward(inputs))


def adapter_between(data: Spec, network: Preprocessing) -> InputAdapter | None:
    """What makes the data's images fit a network, perhaps without any change; `None` if nothing can.

    Nothing adapts data without images, the size of images with predictions per pixel, or color for
    a network that reads gray.

    Args:
        data: describes the data.
        network: what the network expects.
    """
    given = Preprocessing.of_spec(data)
    if given.channels is None or not _can_adapt(data, given, network):
        return None
    return InputAdapter(given, network)


def described_as_spec(trained_on: Spec | None, data: Spec, network: Preprocessing) -> Spec | None:
    """The spec of a network's data with the images that the network expects, to be compared.

    Args:
        trained_on: the spec of the data that the network was trained on, if it is known.
        data: describes the data.
        network: what the network expects.
    """
    given = Preprocessing.of_spec(data)
    if given.size is None or given.channels is None or network == Preprocessing():
        return trained_on
    shape = (network.channels or given.channels, *(network.size or given.size))
    known = trained_on or Spec(task=data.task)
    return replace(known, input_shape=shape, mean=network.mean, std=network.std)


def _can_adapt(data: Spec, given: Preprocessing, network: Preprocessing) -> bool:
    resizes = network.size not in (None, given.size)
    if resizes and data.target_shape:
        # One prediction per pixel: another size has other positions.
        return False
    if network.channels not in (None, given.channels) and _more_channels(given, network) is None:
        return False
    if network.mean is None and network.std is None:
        return True
    # Renormalizing needs both of both sides, with one value per channel or one for all.
    channels = network.channels or given.channels
    for values in (given.mean, given.std, network.mean or given.mean, network.std or given.std):
        if values is None or len(values) not in (1, given.channels, channels):
            return False
    return True


def _more_channels(data: Preprocessing, network: Preprocessing) -> int | None:
    """The channels to repeat gray images to; `None` if they stay as they are."""
    return RGB if data.channels == 1 and network.channels == RGB else None


def _same_values(first: tuple[float, ...] | None, second: tuple[float, ...] | None) -> bool:
    """Whether two means are equal; one value stands for all channels."""
    if first is None or second is None:
        return first == second
    longest = max(len(first), len(second))
    return _repeated(first, longest) == _repeated(second, longest)


def _repeated(values: tuple[float, ...], length: int) -> tuple[float, ...]:
    return values * length if len(values) == 1 else values


def _double(values: tuple[float, ...] | None) -> Tensor:
    assert values is not None
    return torch.tensor(values, dtype=torch.float64)


def _shown(values: tuple[float, ...] | None) -> str:
    """Values with the digits that people compare."""
    return "[" + ", ".join(f"{value:.4g}" for value in values or ()) + "]"
