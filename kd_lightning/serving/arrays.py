"""Reads arrays that are raw inputs of a network already."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.new_samples import NewSample
from kd_lightning.errors import UserError
from kd_lightning.serving.network import NetworkInput
from kd_lightning.values import Value

Array = NDArray[np.generic]

SUFFIX = ".npz"

_KINDS = {"u": "u", "i": "iu", "f": "fiu", "b": "b"}
"""Kinds of numbers that may become a kind without changing their meaning."""


def npz_samples(path: Path, inputs: Sequence[NetworkInput]) -> Iterator[NewSample]:
    """The samples of an NPZ file by their numbers from 0.

    Args:
        path: of the file: one array `(N, ...)` for each input, by its name; the array
            of a single input may have any name.
        inputs: of the network.

    Raises:
        UserError: if the file cannot be read, or its arrays do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an NPZ file of arrays") from error
    tensors = []
    for described in inputs:
        array = _array_of(path, arrays, described, alone=len(inputs) == 1)
        tensors.append(tensor_of(array, described, str(path)))
    sizes = {len(tensor) for tensor in tensors}
    if len(sizes) > 1:
        raise UserError(f"{path}: its arrays have different numbers of samples")
    for number in range(sizes.pop()):
        yield NewSample(
            f"{path}[{number}]", tuple(tensor[number] for tensor in tensors)
        )


def _array_of(
    path: Path,
    arrays: Mapping[str, Array],
    described: NetworkInput,
    alone: bool,
) -> Array:
    if described.name in arrays:
        return arrays[described.name]
    # With one input and one array there is nothing to confuse, whatever its name.
    if alone and len(arrays) == 1:
        (array,) = arrays.values()
        return array
    raise UserError(
        f"{path} has no array {described.name!r}; its arrays are "
        f"{', '.join(arrays) or 'none'}"
    )


def tensor_of(array: Array, described: NetworkInput, owner: str) -> Tensor:
    """An array as the tensor `(N, ...)` that an input takes.

    Args:
        array: of any type.
        described: the input.
        owner: what an error message calls the array.

    Raises:
        UserError: if shape or type do not fit, or a value is not finite.
    """
    # NumPy's name of the type: torch has no function for it.
    wanted = torch.zeros(0, dtype=described.dtype).numpy().dtype
    if array.ndim == 0 or not described.fits(array.shape[1:]):
        raise UserError(
            f"{owner} has an array of shape {list(array.shape)}; the network reads N "
            f"samples of {described}"
        )
    fits = array.dtype.kind in _KINDS.get(wanted.kind, "")
    # Pixels from 0 to 1 or from 0 to 65,535 would be taken for others.
    if wanted.kind == "u" and array.dtype != wanted:
        fits = False
    if not fits:
        raise UserError(
            f"{owner} has an array of {array.dtype}; the network reads {described}"
        )
    converted = np.ascontiguousarray(array.astype(wanted))
    if wanted.kind == "f" and not np.isfinite(converted).all():
        raise UserError(f"{owner} has values that are not finite")
    return torch.from_numpy(converted)


def tensor_of_values(value: Value, described: NetworkInput) -> Tensor:
    """Nested lists of numbers as one sample of an input.

    Args:
        value: as read from JSON, without an axis for samples.
        described: the input.

    Raises:
        UserError: if shape or numbers do not fit.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise UserError("the array's lists have different lengths") from error
    if array.dtype.kind not in "biuf":
        raise UserError("the array must hold numbers, in lists of equal lengths")
    if described.dtype == torch.uint8 and array.dtype.kind in "iu":
        # A conversion to uint8 would wrap around.
        if array.size > 0 and (array.min() < 0 or array.max() > 255):
            raise UserError("pixels are whole numbers from 0 to 255")
        array = array.astype(np.uint8)
    return tensor_of(array[None], described, "the request")[0]
