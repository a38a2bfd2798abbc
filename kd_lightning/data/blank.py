"""Blank samples, from what a datamodule says of its inputs: for finding shapes, and for timing a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kd_lightning.types import Inputs


def blank_inputs(spec: Mapping[str, Any], samples: int, name: str = "inputs") -> Inputs:
    """Inputs of the right shapes that mean nothing.

    Args:
        spec: of a datamodule. `input_shape` is that of a sample whose inputs are one tensor; where they are a mapping, `name`
            holds `{"shape": [...], "value": v}` for each of its tensors, of whole numbers.
        samples: how many.
        name: "inputs", or "teacher_inputs" where the teacher reads another encoding.
    """
    if name not in spec:
        return torch.zeros(samples, *spec["input_shape"])
    return {
        key: torch.full((samples, *tensor["shape"]), tensor["value"])
        for key, tensor in spec[name].items()
    }
