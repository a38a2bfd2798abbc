"""Reads a checkpoint, a state dict or a safetensors file without running code from it."""

from __future__ import annotations

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


def split_choice(path: str | Path) -> tuple[Path, str | None]:
    """Split `FILE#ENTRY` into the file and the entry that was chosen from it.

    Args:
        path: of a file whose name may itself hold a `#`.

    Returns:
        The path, with `~` expanded, and the entry; `None` if none was chosen.
    """
    whole = Path(path).expanduser()
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
        raise UserError(f"{what}: there is no file {file}")
    content = _read(file, what)
    if not isinstance(content, dict):
        raise UserError(
            f"{what}: {file} holds a {type(content).__name__}, not a checkpoint or a state_dict"
        )
    check_metadata(content, what, file)
    if choice is None:
        return content
    return _chosen(content, choice, f"{what}: {file}")


def _read(path: Path, what: str) -> object:
    damage = damage_of(path)
    if damage is not None:
        raise UserError(_unreadable(path, what, damage))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with warnings.catch_warnings():
            # About sparse and quantized tensors, which our own checks refuse.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refusal = refusal_of(path, str(error))
        if refusal is not None:
            raise UserError(f"{what}: {path} cannot be read {refusal}") from error
        raise UserError(_unreadable(path, what, "it is corrupt")) from error


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
