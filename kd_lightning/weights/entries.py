"""Finds the state dicts in a file, under whatever names a training script gave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.weights.metadata import KEY
from kd_lightning.weights.pickles import CONTAINERS

_DEPTH = 4
"""How deep state dicts are searched: a checkpoint in a checkpoint in a dict, and one more."""

_NOT_WEIGHTS = (
    "optim",
    "sched",
    "scaler",
    "loop",
    "callback",
    "param",
    "rng",
    "config",
    "args",
)
"""Parts of the names of entries that hold the state of training, not of a network."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that torch.compile, FSDP and activation checkpointing put around others."""


def network_weights(
    content: Mapping[str, Any], what: str = "the checkpoint"
) -> dict[str, Tensor]:
    """The network's weights from a checkpoint of ours, a checkpoint of others, or a state dict.

    Args:
        content: content of the file, see `read_file`.
        what: name of the file's purpose, for messages.

    Returns:
        The tensors by the network's own names. A checkpoint of ours also stores adapters of losses
        beside the network; only the network's tensors are returned.

    Raises:
        UserError: if our own entry does not say which tensors are the network's.
    """
    state = _innermost(content)
    described = content.get(KEY)
    prefix = ""
    if described:
        # The role is the prefix of the network's names in our checkpoints.
        if not described.get("role"):
            raise UserError(
                f"{what} is damaged ({KEY}.role is missing); give another checkpoint"
            )
        prefix = f"{described['role']}."
    weights = {}
    for name, value in state.items():
        # Files of others may hold settings beside the tensors.
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        if name.startswith(prefix):
            weights[name.removeprefix(prefix)] = value
    return weights


def _innermost(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in the usual containers, which may be nested."""
    for _ in range(_DEPTH):
        inner = _contained(content)
        if inner is None:
            break
        content = inner
    return content


def _contained(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first of the usual containers in a dict; `None` if it has none."""
    for name in CONTAINERS:
        value = content.get(name)
        if isinstance(value, Mapping):
            return value
    return None


def weight_entries(
    content: Mapping[str, Any], what: str
) -> dict[str, dict[str, Tensor]]:
    """All state dicts in a file.

    Args:
        content: content of the file, see `read_file`.
        what: name of the file's purpose, for messages.

    Returns:
        The tensors of each state dict, by the path of its entry, such as `state_dict` or
        `models.ema`. The path of the file itself is empty.

    Raises:
        UserError: if the keys of a state dict are no texts.
    """
    entries = {}
    for path, tensors in _walk(content, "", _DEPTH):
        for key in tensors:
            if not isinstance(key, str):
                place = f"its entry {path!r} has" if path else "it has"
                raise UserError(
                    f"{what}: {place} tensors under keys that are no names, such as {key!r}; give "
                    "a state_dict of the network"
                )
        entries[path] = tensors
    return entries


def _walk(
    content: Mapping[Any, Any],
    path: str,
    depth: int,
) -> Iterator[tuple[str, dict[Any, Tensor]]]:
    tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[key] = value
    if tensors:
        yield path, tensors
    if depth == 0:
        return
    for key, value in content.items():
        if not isinstance(value, Mapping) or not isinstance(key, str) or key == KEY:
            continue
        # "params" is a container of weights; "hyper_parameters" is not.
        # An optimizer's state holds tensors of the network's shapes, too.
        holds_training_state = any(part in key.lower() for part in _NOT_WEIGHTS)
        if holds_training_state and key not in CONTAINERS:
            continue
        inner_path = f"{path}.{key}" if path else key
        yield from _walk(value, inner_path, depth - 1)


def wrappers_in(tensors: Mapping[str, Tensor]) -> list[str]:
    """The wrapping modules that are parts of the tensors' names."""
    parts: set[str] = set()
    for key in tensors:
        parts.update(key.split("."))
    return [wrapper for wrapper in _WRAPPERS if wrapper in parts]


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names that they have without modules such as `_orig_mod`."""
    renamed = {}
    for key, tensor in tensors.items():
        parts = [part for part in key.split(".") if part not in _WRAPPERS]
        renamed[".".join(parts)] = tensor
    # Two names that differ in their wrappers alone must not become one.
    if len(renamed) == len(tensors):
        return renamed
    return dict(tensors)


def entry_names(content: Mapping[str, Any]) -> list[str]:
    """The entries of a file that `FILE#ENTRY` can select."""
    names = []
    for path, _ in _walk(content, "", _DEPTH):
        if path:
            names.append(path)
    return names


def selected_entry(content: Mapping[str, Any], choice: str) -> dict[str, Any] | None:
    """The entry of a file at a path, or the tensors under a prefix; `None` if there is none.

    Args:
        content: content of the file.
        choice: path of an entry, a prefix of a state dict's keys, or both joined by a dot.
    """
    for path, tensors in _walk(content, "", _DEPTH):
        if path == choice:
            return dict(tensors)
        prefix = choice
        if path:
            if not choice.startswith(f"{path}."):
                continue
            prefix = choice.removeprefix(f"{path}.")
        below = {}
        for key, tensor in without_wrappers(tensors).items():
            if key.startswith(f"{prefix}."):
                below[key.removeprefix(f"{prefix}.")] = tensor
        if below:
            return below
    node: Any = content
    for key in choice.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return None
    return dict(node)
