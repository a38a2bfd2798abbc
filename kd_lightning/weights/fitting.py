"""Loads weights into a network strictly, after the conversions that lose nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.weights.candidates import (
    COUNTER,
    find_weights,
    missing_problem,
    shared_names,
    some,
    unknown_problem,
)

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
"""Classes of tensors that hold their values themselves."""


@rank_zero_only
def _print_note(what: str, notes: list[str]) -> None:
    """Print in one line what was chosen or converted; only the main process prints."""
    if notes:
        print(f"{what}: {'; '.join(notes)}")


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Check that weights fit a network; nothing is loaded.

    Args:
        network: the network.
        weights: tensors by the network's own names.
        what: name of the weights' purpose, for messages.

    Raises:
        UserError: if a tensor is missing, has another shape, is unknown to the network, is of a
            kind or dtype that cannot be its weight, or holds values that are not finite. The
            message names the first such tensor.
    """
    missing = missing_problem(network, weights, what)
    if missing is not None:
        raise UserError(missing)
    network_name = type(network).__name__
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for key, tensor in network.state_dict().items():
        stored = weights[key]
        # `load_state_dict` would convert silently what this refuses.
        _check_kind(key, stored, tensor.dtype, what)
        if stored.shape != tensor.shape:
            raise UserError(
                f"{what}: {key!r} is {tuple(stored.shape)} in the weights and "
                f"{tuple(tensor.shape)} in {network_name}; "
                "do they belong to another network, or to other classes?"
            )
        # As the network will hold it: a large value may not fit its dtype.
        _check_finite(key, stored.to(tensor.dtype), key in parameters, what)
    unknown = unknown_problem(network, weights, what)
    if unknown is not None:
        raise UserError(unknown)


def _check_kind(key: str, stored: Tensor, wanted: torch.dtype, what: str) -> None:
    """Refuse tensors without values of their own, and dtypes that lose or invent values."""
    kind = None
    if stored.is_meta:
        kind = "on the meta device, which has no values"
    elif stored.is_quantized:
        kind = "quantized"
    elif stored.layout != torch.strided:
        kind = f"of layout {stored.layout}"
    elif type(stored) not in _PLAIN:
        kind = f"a {type(stored).__name__}"
    if kind is not None:
        raise UserError(
            f"{what}: {key!r} is {kind}; save the network's state_dict as dense tensors"
        )
    # Between floats a conversion rounds; between kinds it changes what numbers mean.
    if _dtype_kind(stored.dtype) != _dtype_kind(wanted):
        raise UserError(
            f"{what}: {key!r} is {_dtype_name(stored.dtype)} in the weights and "
            f"{_dtype_name(wanted)} in the network; give weights of the same kind of number"
        )


def _dtype_kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "integer"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_finite(key: str, stored: Tensor, is_parameter: bool, what: str) -> None:
    if not stored.dtype.is_floating_point and not stored.dtype.is_complex:
        return
    has_nan = bool(stored.isnan().any())
    # A buffer may hold infinities on purpose, such as a mask that is added to scores.
    has_infinity = is_parameter and not has_nan and bool(stored.isinf().any())
    if has_nan or has_infinity:
        value = "NaN" if has_nan else "an infinite value"
        raise UserError(
            f"{what}: {key!r} holds {value}; the training that made the file diverged, or the "
            "file is damaged"
        )


def _completed(
    network: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Add the tensors that follow from others, and note what was added.

    Args:
        network: the network.
        weights: by the network's own names.
    """
    state = network.state_dict()
    completed = dict(weights)
    notes = []
    missing_counters = 0
    for name, tensor in state.items():
        if name.rpartition(".")[2] == COUNTER and name not in completed:
            # Only a momentum of None reads the counter, and torch starts from 0 then, too.
            completed[name] = torch.zeros_like(tensor, device="cpu")
            missing_counters += 1
    if missing_counters:
        notes.append(f"{missing_counters} missing {COUNTER} set to 0")
    tied_names = []
    for name, first in shared_names(network).items():
        # A file may hold either name of a tied pair.
        if name not in completed and first in completed:
            completed[name] = completed[first]
            tied_names.append(name)
        elif first not in completed and name in completed:
            completed[first] = completed[name]
            tied_names.append(first)
    # The user must learn of every tensor that the file did not hold.
    if tied_names:
        notes.append(f"{some(tied_names)} taken from the tensors that they are tied to")
    return completed, notes


def _check_tied(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse different values for what is one tensor in the network."""
    for name, first in shared_names(network).items():
        tensor = weights[name]
        first_tensor = weights[first]
        if tensor is not first_tensor and not torch.equal(tensor, first_tensor):
            raise UserError(
                f"{what}: {name!r} and {first!r} differ in the weights, but "
                f"{type(network).__name__} ties them to one tensor; build it without tied weights"
            )


def _conversion(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """A note about dtypes that loading converts to the network's; empty if there are none."""
    converted = set()
    for name, tensor in network.state_dict().items():
        source = weights[name].dtype
        if tensor.dtype.is_floating_point and source != tensor.dtype:
            before = _dtype_name(source)
            after = _dtype_name(tensor.dtype)
            converted.add(f"{before} converted to {after}")
    return sorted(converted)


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    what: str,
    notes: list[str] | None = None,
) -> None:
    """Load weights into a network strictly, and print in one line what was converted.

    Tensors of another floating-point dtype are converted to the network's. Counters of batch
    normalization and tied tensors may be missing.

    Args:
        network: the network.
        weights: tensors by the network's own names.
        what: name of the weights' purpose, for messages.
        notes: what was chosen before, to be printed in the same line.

    Raises:
        UserError: if the weights do not fit, see `check_weights`.
    """
    completed, added = _completed(network, weights)
    check_weights(network, completed, what)
    _check_tied(network, completed, what)
    conversion = _conversion(network, completed)
    network.load_state_dict(completed)
    _print_note(what, [*(notes or []), *added, *conversion])


def fitting_weights(
    network: nn.Module,
    content: Mapping[str, Any],
    what: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a network in a file of any origin; see `find_weights`.

    Returns:
        The weights by the network's names, not compared by shape yet, and what was removed or
        chosen, for `load_weights`.

    Raises:
        UserError: if none fit by name, or if several do.
    """
    candidate = find_weights(network, content, what)
    return candidate.weights, candidate.notes()


def load_file_weights(
    network: nn.Module,
    content: Mapping[str, Any],
    what: str,
) -> None:
    """Load the weights of a file of any origin into a network.

    Args:
        network: the network.
        content: content of the file, see `read_file`.
        what: name of the file's purpose, for messages.

    Raises:
        UserError: if none of the file's weights fit, or if several do.
    """
    weights, notes = fitting_weights(network, content, what)
    load_weights(network, weights, what, notes)


def without_other_head(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    num_classes: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """Replace a head for other classes by the network's own new one.

    A head is the one module whose parameters differ in nothing but their number of outputs.

    Args:
        network: the network, whose head has `num_classes` outputs.
        weights: by the network's own names.
        num_classes: of the data; 0 if unknown.

    Returns:
        The weights with the new head, and a note about it. The weights are unchanged if no shape
        differs, or if more than the head does, which `load_weights` then refuses.
    """
    state = network.state_dict()
    differing = []
    for name, tensor in state.items():
        if name in weights and weights[name].shape != tensor.shape:
            differing.append(name)
    if not differing:
        return dict(weights), []
    modules = sorted({name.rpartition(".")[0] for name in differing})
    if len(modules) > 1:
        # Not the head alone: the check of shapes names the first parameter.
        return dict(weights), []
    changed = dict(weights)
    outputs = 0
    for name in differing:
        stored = weights[name]
        own = state[name]
        if not _is_other_head(stored, own, num_classes):
            return dict(weights), []
        outputs = stored.shape[0]
        changed[name] = own.detach().cpu().clone()
    note = (
        f"the head {modules[0]!r} is for {outputs} outputs in the weights and for "
        f"{state[differing[0]].shape[0]} here, so it keeps its random initial weights"
    )
    return changed, [note]


def _is_other_head(stored: Tensor, own: Tensor, num_classes: int) -> bool:
    """Whether two tensors differ in their number of outputs alone."""
    if stored.ndim != own.ndim or own.ndim == 0:
        return False
    # Dimension 0 of a weight or bias counts the outputs.
    same_inputs = stored.shape[1:] == own.shape[1:]
    return same_inputs and num_classes in (0, own.shape[0])
