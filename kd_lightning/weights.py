"""Reads weights and checkpoints without running code from them, and checks that they fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError

KEY = "kd_lightning"
"""The key of our own entry in a Lightning checkpoint.

It holds the network's class and arguments, the data's spec and the teacher's source.
"""


def plain(value: Any) -> Any:
    """Convert nested values to builtins, so that a checkpoint loads without running code."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, FunctionType | type):
        # As a config names it; the text of a function object would hold its address in memory.
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(network: nn.Module) -> str:
    """The sha256 over the names, shapes, dtypes and bytes of a network's state dict."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        # Viewed as bytes, because numpy does not know bfloat16.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_file(path: str | Path, what: str) -> dict[str, Any]:
    """Read a checkpoint, state dict or safetensors file to the CPU.

    Args:
        path: path of the file.
        what: name of the file's purpose, for messages.

    Returns:
        The mapping that the file holds.

    Raises:
        UserError: if the file is missing or corrupt, holds no mapping, or could run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it is corrupt"
        if "Weights only" in str(error):
            reason = "it holds more than tensors and plain values"
        raise UserError(
            f"{what}: {path} cannot be read ({reason}); "
            "give a checkpoint, state_dict or safetensors file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{what}: {path} holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )
    return content


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights from a checkpoint of ours, a checkpoint of others, or a state dict.

    Args:
        content: content of the file, see `read_file`.

    Returns:
        The tensors by the network's own names. A checkpoint of ours also stores adapters of losses
        beside the network; only the network's tensors are returned.
    """
    state = content
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            state = content[name]
            break
    metadata = content.get(KEY)
    prefix = f"{metadata['role']}." if metadata else ""
    weights = {}
    for name, value in state.items():
        if name.startswith(prefix) and isinstance(value, Tensor):
            weights[name.removeprefix(prefix)] = value
    return weights


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Check that weights fit a network; nothing is loaded.

    Args:
        network: the network.
        weights: tensors by the network's own names.
        what: name of the weights' purpose, for messages.

    Raises:
        UserError: if a tensor is missing, has another shape, or is unknown to the network. The
            message names the first such tensor.
    """
    network_name = type(network).__name__
    state = network.state_dict()
    for key, tensor in state.items():
        if key not in weights:
            raise UserError(
                f"{what}: the weights hold no {key!r} for {network_name}; "
                "do they belong to another network?"
            )
        if weights[key].shape != tensor.shape:
            raise UserError(
                f"{what}: {key!r} is {tuple(weights[key].shape)} in the weights and "
                f"{tuple(tensor.shape)} in {network_name}; "
                "do they belong to another network, or to other classes?"
            )
    for key in weights:
        if key not in state:
            raise UserError(
                f"{what}: the weights hold {key!r}, which {network_name} does not; do they "
                "belong to another network?"
            )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a network strictly.

    Args:
        network: the network.
        weights: tensors by the network's own names.
        what: name of the weights' purpose, for messages.

    Raises:
        UserError: if the weights do not fit, see `check_weights`.
    """
    check_weights(network, weights, what)
    network.load_state_dict(dict(weights))
