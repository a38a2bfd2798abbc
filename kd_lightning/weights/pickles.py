"""Explains why a pickle was refused, and how its weights can be saved without code."""

from __future__ import annotations

import contextlib
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

import torch

CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "teacher",
    "student",
    "weights",
    "params",
)
"""Names under which training scripts store a network's state dict, the most common first."""

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_SHOWN = 3
_START = 3
_LEGACY_PICKLES = 4
"""torch's format before 1.6 starts with a magic number, a version and a platform as pickles."""


def refusal_of(path: Path, message: str) -> str | None:
    """Why torch refuses to read a pickle without running code; `None` if that is not the reason.

    Args:
        path: of the file.
        message: of torch's error.

    Returns:
        The classes or functions in the way, and the command that saves the weights without them.
    """
    if "Weights only" not in message and "weights_only" not in message:
        return None
    names = _globals_of(path, message)
    reason = "it holds more than tensors and plain values"
    if not names:
        return f"({reason}); give a checkpoint, state_dict or safetensors file"
    return f"({reason}: {names}); {_how_to_convert(path)}"


def _globals_of(path: Path, message: str) -> str:
    """The names that the pickle would import, for a message."""
    names: list[str] = []
    # Only the zip format can be searched for all names; torch's message has the first one.
    with contextlib.suppress(Exception):
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    names = names or _GLOBAL.findall(message)
    # A hostile name could hold escape sequences of the terminal.
    shown = [ascii(name).strip("'") for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return ", ".join(shown)


def _how_to_convert(path: Path) -> str:
    weights = _expression_for_weights(path)
    target = f"{path.name.partition('.')[0]}-weights.pt"
    return (
        "if you trust its source, save the weights alone where it was made: "
        f"python -c \"import torch; x = torch.load({path.name!r}, map_location='cpu', "
        f'weights_only=False); torch.save({weights}, {target!r})"'
    )


def _expression_for_weights(path: Path) -> str:
    """Python that gives the state dict of a file's content `x`."""
    operations: list[tuple[str, object]] = []
    with contextlib.suppress(Exception):
        if zipfile.is_zipfile(path):
            operations = _operations_in_zip(path)
        else:
            operations = _operations_in_legacy_file(path)
    names = [name for name, _ in operations]
    # A pickle starts with its outermost object, after its protocol and memo operations.
    is_dict = "EMPTY_DICT" in names[:_START]
    if not is_dict:
        return "x.state_dict()"
    texts = {argument for _, argument in operations}
    for container in CONTAINERS:
        if container in texts:
            return f"x[{container!r}]"
    return "{k: v for k, v in x.items() if torch.is_tensor(v)}"


def _operations_in_zip(path: Path) -> list[tuple[str, object]]:
    with zipfile.ZipFile(path) as archive:
        for record in archive.namelist():
            if record.endswith("data.pkl"):
                with archive.open(record) as file:
                    return _operations(file)
    return []


def _operations_in_legacy_file(path: Path) -> list[tuple[str, object]]:
    operations: list[tuple[str, object]] = []
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            operations = _operations(file)
    return operations


def _operations(pickle_file: IO[bytes]) -> list[tuple[str, object]]:
    """The operations of one pickle with their arguments; none of them is executed."""
    operations = []
    for operation, argument, _ in pickletools.genops(pickle_file):
        operations.append((operation.name, argument))
    return operations
