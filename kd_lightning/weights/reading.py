"""Reads a checkpoint, a state dict or a safetensors file without running code from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_lightning.errors import UserError
from kd_lightning.weights.entries import entry_names, selected_entry
from kd_lightning.weights.integrity import damage_of
from kd_lightning.weights.metadata import KEY, check_metadata
from kd_lightning.weights.pickles import refusal_of

EXPORTED_WEIGHTS = "student.safetensors"
"""The file in a folder of `kd export` that holds the weights."""


def split_choice(path: str | Path) -> tuple[Path, str | None]:
    """Split `FILE#ENTRY` into the file and the entry that was chosen from it.

    Args:
        path: of a file whose name may itself hold a `#`, or of a folder that `kd export` wrote.

    Returns:
        The path, with `~` expanded, and the entry; `None` if none was chosen.
    """
    whole = Path(path).expanduser()
    if (whole / EXPORTED_WEIGHTS).is_file():
        return whole / EXPORTED_WEIGHTS, None
    name, separator, choice = str(whole).rpartition("#")
    if not separator or not choice or whole.exists():
        return whole, None
    return Path(name), choice


def read_file(path: str | Path, what: str) -> dict[str, Any]:
    """Read a checkpoint, state dict or safetensors file to the CPU.

    Checksums inside the file are verified, and sizes that it declares are compared with its own.

    Args:
        path: path of the file; `FILE#ENTRY` reads one entry of it, such as `run.pt#ema`.
        what: name of the file's purpose, for messages.

    Returns:
        The mapping that the file holds. If an entry was chosen, the mapping holds no other one.

    Raises:
        UserError: if the file is missing or corrupt, holds no mapping, could run code, has no such
            entry, or if our own entry in it has another form than we write.
    """
    file, choice = split_choice(path)
    if not file.is_file():
        raise UserError(f"{what}: there is no file {file}{_remedy(file)}")
    content = _read(file, what)
    if not isinstance(content, dict):
        raise UserError(
            f"{what}: {file} holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )
    check_metadata(content, what, file)
    if choice is None:
        return content
    return _chosen(content, choice, f"{what}: {file}")


def _remedy(path: Path) -> str:
    """What to do about a folder of `kd export` that holds a graph, which is no network to train."""
    if (path / "student.json").is_file():
        return "; write the weights with kd export --format safetensors"
    return ""


def _read(path: Path, what: str) -> object:
    damage = damage_of(path)
    if damage is not None:
        raise UserError(_unreadable(path, what, damage))
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings():
            # About sparse and quantized tensors, which our own checks refuse.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refusal = refusal_of(path, str(error))
        if refusal is not None:
            raise UserError(f"{what}: {path} cannot be read {refusal}") from error
        raise UserError(_unreadable(path, what, "it is corrupt")) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file; if `kd export` wrote it, as the content of a checkpoint of ours."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = dict(load_file(path))
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
    if KEY not in header:
        return tensors
    described = json.loads(header[KEY])
    prefix = described["role"]
    state = {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    return {"state_dict": state, KEY: described}


def _unreadable(path: Path, what: str, reason: str) -> str:
    return (
        f"{what}: {path} cannot be read ({reason}); "
        "give a checkpoint, state_dict or safetensors file"
    )


def _chosen(content: Mapping[str, Any], choice: str, owner: str) -> dict[str, Any]:
    """The content reduced to the chosen entry; our own entry still describes the network."""
    chosen = selected_entry(content, choice)
    if chosen is None:
        names = ", ".join(entry_names(content)) or "none"
        raise UserError(
            f"{owner} has no entry {choice!r} with weights; its entries: {names}"
        )
    if KEY not in content:
        return {"state_dict": chosen}
    # Below the prefix of another network, such as a mean teacher's, lie names without a prefix: it
    # takes the place of the network that the checkpoint describes.
    role = f"{content[KEY]['role']}."
    if not any(str(name).startswith(role) for name in chosen):
        chosen = {f"{role}{name}": tensor for name, tensor in chosen.items()}
    return {"state_dict": chosen, KEY: content[KEY]}
