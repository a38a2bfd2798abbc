"""Turns the student's images into those that a teacher was trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.spec import Spec
from kd_lightning.teachers.preprocessing import Preprocessing
from kd_lightning.types import Batch, full

RGB = 3


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
        # Three independent changes: channels, normalization and size.
        self.channels = _more_channels(data, network)
        self.size = None
        if network.size != data.size:
            self.size = network.size
        expected = data.overridden_by(network)
        same_mean = _same_values(data.mean, expected.mean)
        same_std = _same_values(data.std, expected.std)
        self.renormalizes = not (same_mean and same_std)
        scale = torch.ones(1)
        shift = torch.zeros(1)
        if self.renormalizes:
            # One affine map per channel, computed in double precision before it is rounded.
            data_mean = _double(data.mean)
            data_std = _double(data.std)
            mean = _double(expected.mean)
            std = _double(expected.std)
            scale = data_std / std
            shift = (data_mean - mean) / std
        # Not saved: they are functions of the teacher and the data.
        scale = scale.float().view(-1, 1, 1)
        shift = shift.float().view(-1, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.note = self._describe(data, network)

    @property
    def changes_inputs(self) -> bool:
        """Whether the teacher expects anything else than the data serves."""
        if self.channels is not None or self.size is not None:
            return True
        return self.renormalizes

    def settings(self) -> dict[str, object]:
        """What is changed, in plain values; a cache of the teacher's outputs depends on it."""
        return {
            "channels": self.channels,
            "size": list(self.size) if self.size is not None else None,
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
            mean = _shown(expected.mean)
            std = _shown(expected.std)
            changes.append(
                f"normalized by mean {mean} and std {std} "
                f"instead of {_shown(data.mean)} and {_shown(data.std)}"
            )
        if self.size is not None and data.size is not None:
            old = f"{data.size[0]} x {data.size[1]}"
            new = f"{self.size[0]} x {self.size[1]}"
            changes.append(f"resized from {old} to {new}")
        return ", ".join(changes)

    def forward(self, images: Tensor) -> Tensor:
        """Adapt images `(B, C, H, W)`.

        Args:
            images: as the student reads them.

        Returns:
            `(B, C', H', W')` in the same dtype, with the channels and the size of the teacher.
        """
        dtype = images.dtype
        # Not every device interpolates in half precision.
        images = full(images)
        # A view: the three channels share their memory.
        if self.channels is not None:
            images = images.expand(-1, self.channels, -1, -1)
        if self.renormalizes:
            scale = self.scale.to(images.dtype)
            shift = self.shift.to(images.dtype)
            images = images * scale + shift
        if self.size is not None:
            images = F.interpolate(
                images, self.size, mode="bilinear", align_corners=False, antialias=True
            )
        return images.to(dtype)

    def adapt(self, batch: Batch) -> Batch:
        """The batch as the teacher reads it; the student's own inputs stay as they are.

        Args:
            batch: of images.
        """
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


def described_as_spec(
    trained_on: Spec | None,
    data: Spec,
    network: Preprocessing,
) -> Spec | None:
    """The spec of a network's data with the images that the network expects, to be compared.

    Args:
        trained_on: the spec of the data that the network was trained on, if it is known.
        data: describes the data.
        network: what the network expects.
    """
    given = Preprocessing.of_spec(data)
    if given.size is None or given.channels is None:
        return trained_on
    # Nothing is known of the network's images.
    # Without a description, the comparison uses the network's own data.
    if network == Preprocessing():
        return trained_on
    channels = network.channels or given.channels
    height, width = network.size or given.size
    shape = (channels, height, width)
    known = trained_on or Spec(task=data.task)
    return replace(known, input_shape=shape, mean=network.mean, std=network.std)


def _can_adapt(data: Spec, given: Preprocessing, network: Preprocessing) -> bool:
    """Whether an adapter can turn the data's images into those that a network expects."""
    resizes = network.size not in (None, given.size)
    if resizes and data.target_shape:
        # One prediction per pixel: another size has other positions.
        return False
    other_channels = network.channels not in (None, given.channels)
    if other_channels and _more_channels(given, network) is None:
        return False
    if network.mean is None and network.std is None:
        return True
    # Renormalizing needs both of both sides, with one value per channel or one for all.
    channels = network.channels or given.channels
    mean = network.mean or given.mean
    std = network.std or given.std
    for values in (given.mean, given.std, mean, std):
        if values is None:
            return False
        if len(values) not in (1, given.channels, channels):
            return False
    return True


def _more_channels(data: Preprocessing, network: Preprocessing) -> int | None:
    """The channels to repeat gray images to; `None` if they stay as they are."""
    if data.channels == 1 and network.channels == RGB:
        return RGB
    return None


def _same_values(
    first: tuple[float, ...] | None, second: tuple[float, ...] | None
) -> bool:
    """Whether two means are equal; one value stands for all channels."""
    if first is None or second is None:
        return first == second
    longest = max(len(first), len(second))
    return _repeated(first, longest) == _repeated(second, longest)


def _repeated(values: tuple[float, ...], length: int) -> tuple[float, ...]:
    """One value for all channels as one value per channel."""
    if len(values) == 1:
        return values * length
    return values


def _double(values: tuple[float, ...] | None) -> Tensor:
    """Known values as a float64 tensor."""
    assert values is not None
    return torch.tensor(values, dtype=torch.float64)


def _shown(values: tuple[float, ...] | None) -> str:
    """Values with the digits that people compare."""
    digits = ", ".join(f"{value:.4g}" for value in values or ())
    return f"[{digits}]"
