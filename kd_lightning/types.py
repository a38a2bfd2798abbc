"""Batch and Output: what every dataset yields and every network returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

CLEAN = -1
"""The view of a sample on which no augmentation was drawn: validation, test, and training without augmentation."""

UNLABELLED = -100
"""The target of a sample whose label is unknown or withheld."""

Inputs = Tensor | Mapping[str, Tensor]


def _map_inputs(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor of a field changed; whatever else it is left as it is."""
    if isinstance(value, Tensor):
        return change(value)
    return (
        {name: change(tensor) for name, tensor in value.items()}
        if isinstance(value, Mapping)
        else value
    )


@dataclass(slots=True)
class Batch:
    """One batch of samples, the same shape for every dataset and every method.

    Attributes:
        inputs: what the student reads: a tensor `(B, ...)` or a mapping of such tensors.
        target: int64 `(B,)`, `UNLABELLED` (-100) where there is no label.
        index: int64 `(B,)`, the sample's row in the unfiltered source split, so that one cache serves every subset.
        view: which draw of the augmentation this is, `CLEAN` (-1) where none was applied.
        split: the source split in which `index` counts, `"train"` or `"test"` (validation rows are rows of a source split).
        teacher_inputs: what the teacher reads, where it reads another encoding of the same samples.
        ghost: these samples stand in for none: a process that has nothing in a step must take part in it all the same.
        partner: int64 `(B,)`, where samples are mixed: the target of the sample mixed into each, -100 where it has none.
        share: float32 `(B,)` in [0, 1], where samples are mixed: how much of a sample is its own; the rest is its partner's.
    """

    inputs: Inputs
    target: Tensor
    index: Tensor
    view: int = CLEAN
    split: str = "train"
    teacher_inputs: Inputs | None = None
    ghost: bool = False
    partner: Tensor | None = None
    share: Tensor | None = None

    def __len__(self) -> int:
        return self.target.shape[0]

    def rows(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop`, without copying; itself when those are all."""
        if (start, stop) == (0, len(self)):
            return self
        inputs, teacher = self.inputs, self.teacher_inputs
        return Batch(
            inputs[start:stop]
            if isinstance(inputs, Tensor)
            else _map_inputs(inputs, lambda tensor: tensor[start:stop]),
            self.target[start:stop],
            self.index[start:stop],
            self.view,
            self.split,
            None if teacher is None else _map_inputs(teacher, lambda tensor: tensor[start:stop]),
            self.ghost,
            None if self.partner is None else self.partner[start:stop],
            None if self.share is None else self.share[start:stop],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`; itself when it is there already."""
        device = torch.device(device)
        if self.target.device == device:
            return self
        values = (getattr(self, f.name) for f in fields(self))
        return Batch(
            *(
                _map_inputs(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))
                for value in values
            )
        )


def _map(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    """An output of the same kind with every tensor changed."""
    changed: dict[str, Any] = {}
    for name in (f.name for f in fields(output)):
        value = getattr(output, name)
        changed[name] = (
            {k: change(t) for k, t in value.items()} if isinstance(value, dict) else change(value)
        )
    return type(output)(**changed)


def full(x: Tensor) -> Tensor:
    """At least single precision: half-precision tensors become float32, float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(slots=True)
class Output:
    """What a network says of a batch.

    Attributes:
        logits: `(B, K)`, before any softmax.
        features: tensors captured from named layers, by role.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Log of the predicted distribution at a temperature, `(B, K)`, in at least single precision."""
        return torch.log_softmax(full(self.logits) / temperature, dim=-1)

    def detached(self) -> Output:
        """The same values without their graph: no loss sends a gradient into what it learns from."""
        if type(self) is Output and not self.features and not self.logits.requires_grad:
            return self
        return _map(self, lambda tensor: tensor.detach())


@dataclass(slots=True)
class EnsembleOutput(Output):
    """The arithmetic mean of several networks' distributions, taken at whatever temperature is in use.

    `logits` is the log of that mean at temperature 1. At another temperature the mean of the tempered distributions is
    not the tempered mean, so the members' logits are kept.

    Attributes:
        members: `(B, M, K)`, the members' logits.
        weights: `(M,)`, positive, summing to one.
    """

    members: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        return mean_log_probs(self.members, self.weights, temperature)


def mean_log_probs(members: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """Log of the weighted arithmetic mean of tempered distributions (Hinton et al. 2015, section 5.1).

    Args:
        members: `(B, M, K)` logits.
        weights: `(M,)`, summing to one.
        temperature: divides the logits.

    Returns:
        `(B, K)` log-probabilities.
    """
    log_probs = torch.log_softmax(full(members) / temperature, dim=-1)
    return torch.logsumexp(log_probs + weights.to(log_probs).log()[:, None], dim=-2)
