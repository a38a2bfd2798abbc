"""Weights that a specialist starts from: the generalist's, with the head cut to the specialist's classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError


def specialist_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    theirs: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    what: str,
) -> dict[str, Tensor]:
    """Weights that a specialist can start from: of a network of all classes, with the head's rows for its own classes.

    Where the weights are for other classes in number, the rows of the specialist's classes are taken over, and the dustbin
    gets the mean row of all others and, for a bias, the log of their number besides: the log of the sum of the others'
    exponentials, were all of them alike. Weights of as many classes as the data has, and other data, are left as they are.

    Args:
        network: the specialist.
        weights: of the generalist, a network that differs in its number of classes alone.
        theirs: the spec of what the weights were trained on, where it is known.
        data: the spec of the specialist's data.
        what: who asks, for the message.

    Raises:
        UserError: where the weights are for other classes than those of which the specialist knows a part.
    """
    about, own = data.get("specialist"), network.state_dict()
    if about is None:
        return dict(weights)
    ids, classes, found = about["class_ids"], len(about["class_ids"]) + 1, dict(weights)
    for key, tensor in weights.items():
        shape = own[key].shape if key in own else tensor.shape
        if (
            shape == tensor.shape
            or len(tensor) <= max(ids)
            or shape != (classes, *tensor.shape[1:])
        ):
            continue
        names = (theirs or {}).get("classes") or []
        for at, name in zip(ids, data["classes"], strict=False):
            if names and names[at] != name:
                raise UserError(
                    f"{what}: the weights call class {at} {names[at]!r}, the data {name!r}; are there other classes?"
                )
        others = [at for at in range(len(tensor)) if at not in set(ids)]
        dustbin = tensor[others].mean(0, keepdim=True) + (
            math.log(len(others)) if tensor.ndim == 1 else 0.0
        )
        found[key] = torch.cat([tensor[ids], dustbin])
    return found
