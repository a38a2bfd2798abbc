"""Blank samples of the right shapes, to find out a network's shapes and to time it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kd_lightning.errors import UserError
from kd_lightning.spec import InputSpec, Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import Batch, Inputs


def blank_inputs(spec: Spec, samples: int) -> Inputs:
    """Inputs of `samples` blank samples: zeros, or the fill values of a mapping's tensors."""
    if spec.inputs is not None:
        return _blank_mapping(spec.inputs, samples)
    if spec.input_shape is None:
        raise UserError(f"the spec of the data {spec.data} gives no input_shape")
    return torch.zeros(samples, *spec.input_shape)


def _blank_mapping(
    tensors: Mapping[str, InputSpec], samples: int
) -> dict[str, torch.Tensor]:
    blank = {}
    for name, tensor in tensors.items():
        blank[name] = torch.full((samples, *tensor.shape), tensor.value)
    return blank


def blank_batch(spec: Spec, task: Task, samples: int = 2) -> Batch:
    """A batch that fits the data in every shape and carries no information."""
    teacher_inputs = None
    if spec.teacher_inputs is not None:
        teacher_inputs = _blank_mapping(spec.teacher_inputs, samples)
    return Batch(
        inputs=blank_inputs(spec, samples),
        target=task.blank_target(spec, samples),
        index=torch.arange(samples),
        teacher_inputs=teacher_inputs,
    )
