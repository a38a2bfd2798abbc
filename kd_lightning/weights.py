"""Reads weights and checkpoints without ever running code from them; every fault is reported in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError

KEY = "kd_lightning"
"""Where our own checkpoints keep what Lightning's do not: the network's class and arguments, the spec, the teacher's source."""


def plain(value: Any) -> Any:
    """Builtins alone, so that a checkpoint loads without running code."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(network: nn.Module) -> str:
    """One checksum over a network's tensors, their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def read_file(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping that a checkpoint, state_dict or safetensors file holds, on the CPU.

    Raises:
        UserError: where the file is missing, corrupt, or would need code to be run.
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
        reason = (
            "it holds more than tensors and plain values"
            if "Weights only" in str(error)
            else "it is corrupt"
        )
        raise UserError(
            f"{what}: {path} cannot be read ({reason}); give a checkpoint, state_dict or safetensors file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{what}: {path} holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )
    return content


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's own tensors: of a checkpoint of ours or another's, or a bare state_dict."""
    ours = content.get(KEY)
    state = content
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            state = content[name]
            break
    prefix = f"{ours['role']}." if ours else ""
    return {
        k.removeprefix(prefix): v
        for k, v in state.items()
        if k.startswith(prefix) and isinstance(v, Tensor)
    }


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """UserError names the first key that does not fit the network."""
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in weights:
            raise UserError(
                f"{what}: the weights hold no {key!r} for {type(network).__name__}; is it another network?"
            )
        if weights[key].shape != tensor.shape:
            raise UserError(
                f"{what}: {key!r} is {tuple(weights[key].shape)} in the weights and {tuple(tensor.shape)} in "
                f"{type(network).__name__}; is it another network, or are there other classes?"
            )
    extra = [key for key in weights if key not in own]
    if extra:
        raise UserError(
            f"{what}: the weights hold {extra[0]!r}, which {type(network).__name__} does not; is it another network?"
        )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load all weights strictly; UserError names the first key that does not fit."""
    check_weights(network, weights, what)
    network.load_state_dict(dict(weights))
