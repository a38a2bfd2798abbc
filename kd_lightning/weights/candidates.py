"""Finds which state dict of a file, and which prefix of its keys, belongs to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.weights.entries import (
    network_weights,
    weight_entries,
    without_wrappers,
    wrappers_in,
)
from kd_lightning.weights.metadata import KEY

COUNTER = "num_batches_tracked"
"""Batch normalization's counter of batches, which files of old versions of torch lack."""

RAW_WEIGHTS = "current_model_state"
"""Lightning's entry for the weights themselves, if `state_dict` holds their moving average."""

_SHOWN = 3


@dataclass(frozen=True)
class Candidate:
    """Weights in a file that have a network's names.

    Attributes:
        entry: path of the state dict in the file; empty for the file itself.
        prefix: of the keys, with its last dot; empty if there is none.
        weights: by the network's own names, and tensors of the same prefix that it does not know.
        others: keys with other prefixes.
        wrappers: modules such as `_orig_mod` whose names were removed.
        is_average: whether the file says that these are the average of a training's weights.
    """

    entry: str
    prefix: str
    weights: dict[str, Tensor]
    others: list[str]
    wrappers: tuple[str, ...] = ()
    is_average: bool = False

    @property
    def name(self) -> str:
        """The name that selects these weights in `FILE#NAME`."""
        parts = [part for part in (self.entry, self.prefix.rstrip(".")) if part]
        return ".".join(parts)

    def notes(self) -> list[str]:
        """What was chosen and removed, for a message; empty if nothing was."""
        notes = []
        if self.prefix:
            notes.append(f"prefix {self.prefix!r} removed")
        if self.wrappers:
            notes.append(f"{some(list(self.wrappers))} removed from the names")
        if self.others:
            notes.append(f"tensors of other names skipped: {some(self.others)}")
        if self.is_average:
            notes.append(
                f"state_dict holds averaged weights; the last ones are at '#{RAW_WEIGHTS}'"
            )
        return notes


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [repr(name) for name in names[:_SHOWN]]
    text = ", ".join(shown)
    more = len(names) - len(shown)
    if more:
        return f"{text} and {more} more"
    return text


def shared_names(network: nn.Module) -> dict[str, str]:
    """For each tensor that is tied to an earlier one of a network, the name of that one."""
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    tied = {}
    for name, tensor in network.state_dict().items():
        # Tensors without memory all have the same address, and are not tied by that.
        if tensor.is_meta or tensor.numel() == 0:
            continue
        # A view of a part starts at the same address, but differs in shape or stride.
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if place in first:
            tied[name] = first[place]
        else:
            first[place] = name
    return tied


def find_weights(
    network: nn.Module,
    content: Mapping[str, Any],
    what: str,
) -> Candidate:
    """The weights of a network in a file of any origin.

    Args:
        network: the network.
        content: content of the file, see `read_file`.
        what: name of the file's purpose, for messages.

    Returns:
        The weights by the network's names. Shapes are not compared yet.

    Raises:
        UserError: if no state dict in the file has all names of the network, or if several have,
            such as the weights and their moving average.
    """
    # A checkpoint of ours names its weights; there is nothing to search.
    if content.get(KEY):
        return _described_weights(content, what)
    required = _required_names(network)
    entries = weight_entries(content, what)
    candidates: list[Candidate] = []
    for entry, tensors in entries.items():
        for candidate in _candidates(entry, tensors, required):
            if not any(_are_equal(candidate, other) for other in candidates):
                candidates.append(candidate)
    fitting = [candidate for candidate in candidates if _shapes_fit(network, candidate)]
    # Weights of another head still start a fine-tuning, unless others in the file fit entirely.
    candidates = fitting or candidates
    if len(candidates) > 1:
        raise UserError(_several_problem(network, candidates, what))
    if candidates:
        return candidates[0]
    raise UserError(_near_miss(network, entries, what))


def _described_weights(content: Mapping[str, Any], what: str) -> Candidate:
    """The weights of a checkpoint that has our own entry."""
    weights = network_weights(content, what)
    return Candidate(
        entry="state_dict",
        prefix="",
        weights=without_wrappers(weights),
        others=[],
        wrappers=tuple(wrappers_in(weights)),
        is_average=RAW_WEIGHTS in content,
    )


def _several_problem(
    network: nn.Module,
    candidates: Sequence[Candidate],
    what: str,
) -> str:
    """A message that names all weights that fit, and how to choose one."""
    names = []
    for candidate in candidates:
        names.append(candidate.name or "the file itself")
    # The file itself has no name, and then the other one is the example.
    example = candidates[-1].name or candidates[0].name
    return (
        f"{what} holds several weights that fit {type(network).__name__}: "
        f"{', '.join(names)}; choose one as FILE#NAME, such as '#{example}' at the end of "
        "the path"
    )


def _required_names(network: nn.Module) -> set[str]:
    """The names that a file must hold; the others follow from these."""
    tied = shared_names(network)
    names = set()
    for name in network.state_dict():
        # Old files lack the counters, and may hold tied tensors under either name.
        is_counter = name.rpartition(".")[2] == COUNTER
        if not is_counter and name not in tied and name not in tied.values():
            names.add(name)
    return names


def _candidates(
    entry: str,
    tensors: dict[str, Tensor],
    required: set[str],
) -> list[Candidate]:
    """The prefixes under which a state dict holds all required names."""
    wrappers = tuple(wrappers_in(tensors))
    tensors = without_wrappers(tensors)
    # A network without weights of its own fits any state dict.
    if not required:
        return [Candidate(entry, "", tensors, [], wrappers)]
    # The longest name is the least likely to be the end of another one.
    pivot = max(sorted(required), key=len)
    candidates = []
    for key in tensors:
        if key != pivot and not key.endswith(f".{pivot}"):
            continue
        prefix = key.removesuffix(pivot)
        if all(prefix + name in tensors for name in required):
            candidates.append(_candidate(entry, prefix, tensors, wrappers))
    return candidates


def _candidate(
    entry: str,
    prefix: str,
    tensors: Mapping[str, Tensor],
    wrappers: tuple[str, ...] = (),
) -> Candidate:
    weights = {}
    others = []
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            weights[key.removeprefix(prefix)] = tensor
        else:
            others.append(key)
    return Candidate(entry, prefix, weights, others, wrappers)


def _are_equal(first: Candidate, second: Candidate) -> bool:
    """Whether two candidates are the same weights, such as one network under two names."""
    if first.weights.keys() != second.weights.keys():
        return False
    for name, tensor in first.weights.items():
        other = second.weights[name]
        if tensor is not other and not _is_same_tensor(tensor, other):
            return False
    return True


def _is_same_tensor(first: Tensor, second: Tensor) -> bool:
    # `torch.equal` does not compare such tensors; they count as different.
    if first.is_meta or first.layout != torch.strided or first.is_quantized:
        return False
    if second.is_meta or second.layout != torch.strided or second.is_quantized:
        return False
    return first.dtype == second.dtype and torch.equal(first, second)


def _shapes_fit(network: nn.Module, candidate: Candidate) -> bool:
    for name, tensor in network.state_dict().items():
        stored = candidate.weights.get(name)
        if stored is not None and stored.shape != tensor.shape:
            return False
    return True


def _near_miss(
    network: nn.Module,
    entries: dict[str, dict[str, Tensor]],
    what: str,
) -> str:
    """A message about the state dict that has most of the network's names."""
    if not entries:
        return (
            f"{what} holds no tensors; give a checkpoint or a state_dict of the network"
        )
    names = list(network.state_dict())
    best: dict[str, Tensor] = {}
    most = -1
    for entry, wrapped in entries.items():
        tensors = without_wrappers(wrapped)
        # A wrapper such as "model." around all names is the usual difference.
        for prefix in ("", _common_prefix(tensors)):
            weights = _candidate(entry, prefix, tensors).weights
            matching = sum(name in weights for name in names)
            if matching > most:
                best = weights
                most = matching
    # The best entry lacks a required name, or it would have been a candidate.
    missing = missing_problem(network, best, what)
    if missing is not None:
        return missing
    unknown = unknown_problem(network, best, what)
    if unknown is not None:
        return unknown
    return f"{what} does not fit {type(network).__name__}"


def _common_prefix(tensors: Mapping[str, Tensor]) -> str:
    """The longest prefix of whole names that all keys have."""
    keys = [key.split(".")[:-1] for key in tensors]
    common = []
    for parts in zip(*keys, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}." for part in common)


def missing_problem(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    what: str,
) -> str | None:
    """Which tensors of a network weights lack, with some names of each side; `None` if none.

    Args:
        network: the network.
        weights: by name.
        what: name of the weights' purpose, for messages.
    """
    state = network.state_dict()
    missing = [name for name in state if name not in weights]
    unknown = [name for name in weights if name not in state]
    if not missing:
        return None
    instead = f"; they hold {some(unknown)} instead" if unknown else ""
    more = ""
    # A single missing name is in the sentence already.
    if len(missing) > 1 or unknown:
        more = f" (missing: {some(missing)}{instead})"
    return (
        f"{what}: the weights hold no {missing[0]!r} for {type(network).__name__}{more}; "
        "do they belong to another network?"
    )


def unknown_problem(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    what: str,
) -> str | None:
    """Which tensors of weights a network does not have; `None` if none.

    Args:
        network: the network.
        weights: by name.
        what: name of the weights' purpose, for messages.
    """
    state = network.state_dict()
    unknown = [name for name in weights if name not in state]
    if not unknown:
        return None
    more = f" (unknown: {some(unknown)})" if len(unknown) > 1 else ""
    return (
        f"{what}: the weights hold {unknown[0]!r}, which {type(network).__name__} does not{more}; "
        "do they belong to another network?"
    )
