"""Initial weights of a specialist: those of the generalist, its head cut to fewer classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.spec import Spec


def specialist_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    trained_on: Spec | None,
    data: Spec,
    owner: str,
) -> dict[str, Tensor]:
    """Convert a generalist's weights to those that a specialist starts from.

    Tensors of the head, which have one row per class of the generalist, are cut to the rows of the
    specialist's classes and a row for the dustbin, see `_cut_head`. All other tensors, and weights
    that already have the specialist's number of classes, are returned unchanged.

    Args:
        network: the specialist.
        weights: weights of a network that differs from it only in the number of classes.
        trained_on: the spec of the data that the weights were trained on, if it is known.
        data: the spec of the specialist's data.
        owner: what the error message calls the weights.

    Raises:
        UserError: if the weights were trained on other classes.
    """
    converted = dict(weights)
    specialist = data.specialist
    if specialist is None:
        return converted
    class_ids = specialist["class_ids"]
    rows = len(class_ids) + 1
    targets = network.state_dict()
    for key, tensor in weights.items():
        # Tensors whose shapes differ in another way are left for load_state_dict to report.
        if key not in targets or targets[key].shape == tensor.shape:
            continue
        has_all_classes = len(tensor) > max(class_ids)
        # A tensor of the head is recognized by its shape, because any layer may be the head.
        cut_shape = (rows, *tensor.shape[1:])
        if has_all_classes and targets[key].shape == cut_shape:
            _check_class_names(class_ids, trained_on, data, owner)
            converted[key] = _cut_head(tensor, class_ids)
    return converted


def _check_class_names(
    class_ids: Sequence[int],
    trained_on: Spec | None,
    data: Spec,
    owner: str,
) -> None:
    """Refuse weights that give the specialist's class ids other names; UserError if so."""
    if trained_on is None or not trained_on.classes:
        return
    names = trained_on.classes
    # The data also names the dustbin, which is its last class and has no class id.
    for class_id, name in zip(class_ids, data.classes, strict=False):
        if names[class_id] != name:
            raise UserError(
                f"{owner}: the weights call class {class_id} {names[class_id]!r}, "
                f"the data {name!r}; use weights trained on the same classes"
            )


def _cut_head(tensor: Tensor, class_ids: Sequence[int]) -> Tensor:
    """The rows of a specialist's classes, followed by a row for the dustbin.

    The row of the dustbin is the mean of the n other rows. Its bias also gets log(n), so that the
    logit equals the logsumexp of the other logits if those are equal.

    Args:
        tensor: weight `(K, ...)` or bias `(K,)` of the head.
        class_ids: the m classes of the specialist.

    Returns:
        `(m + 1, ...)`.
    """
    known = set(class_ids)
    others: list[int] = []
    for row in range(len(tensor)):
        if row not in known:
            others.append(row)
    dustbin = tensor[others].mean(0, keepdim=True)
    # Only the bias: added to the weights, log(n) would be multiplied by the features.
    if tensor.ndim == 1:
        dustbin = dustbin + math.log(len(others))
    return torch.cat([tensor[class_ids], dustbin])
