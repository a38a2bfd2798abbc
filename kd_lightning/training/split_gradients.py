"""Optimizers that receive the gradients of hard and of soft losses separately.

The module computes both if its optimizer is a `SplitOptimizer`; nothing else has to be set. In a
loop of your own:

    value = objective(student, teacher, batch)
    hard, soft = objective.split(value.terms)
    split_backward(value.total, hard, soft, optimizer)
    optimizer.step()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.errors import UserError

Gradients = Sequence[Tensor | None]
"""One gradient per parameter; `None` if the losses do not depend on it."""


class SplitOptimizer(Optimizer):
    """Base of the optimizers that treat the gradients of hard and soft losses differently.

    A parameter group lists its parameters, then one companion per parameter: a tensor on the same
    memory. A parameter's `grad` is the gradient of the hard losses, its companion's `grad` that of
    the soft ones. Whatever walks through all parameters, such as `zero_grad` or the unscaling of
    mixed precision, so reaches both gradients. Schedulers see one group with one learning rate.

    A subclass implements `step` with `pairs`.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with a companion for each of its parameters.

        Args:
            param_group: `params`, and options that differ from the defaults.
        """
        given = param_group["params"]
        parameters = [given] if isinstance(given, Tensor) else list(given)
        # A detached tensor shares the memory, and has a gradient of its own.
        companions = [parameter.detach() for parameter in parameters]
        super().add_param_group({**param_group, "params": [*parameters, *companions]})

    @staticmethod
    def pairs(group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of a group with its companion."""
        listed = group["params"]
        half = len(listed) // 2
        yield from zip(listed[:half], listed[half:], strict=True)

    def all_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with its companion."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            pairs.extend(self.pairs(group))
        return pairs


def split_backward(
    total: Tensor,
    hard: Sequence[Tensor],
    soft: Sequence[Tensor],
    optimizer: SplitOptimizer,
    world_size: int = 1,
) -> None:
    """Add both gradients of a total loss to those that the optimizer holds already.

    Args:
        total: where a backward pass would start. It may be a multiple of the objective's total, as
            in mixed precision and if gradients are accumulated.
        hard: the terms of the total that belong to hard losses, with their graph.
        soft: those of soft losses.
        optimizer: receives the gradients.
        world_size: number of processes, over which the mean is taken.
    """
    pairs = optimizer.all_pairs()
    parameters = [parameter for parameter, _ in pairs]
    # Two passes through the same graph: the first must not free it.
    of_hard = _gradients(total, hard, parameters, world_size)
    of_soft = _gradients(total, soft, parameters, world_size)
    for (parameter, companion), own, other in zip(pairs, of_hard, of_soft, strict=True):
        _accumulate(parameter, own)
        _accumulate(companion, other)


def _gradients(
    total: Tensor,
    terms: Sequence[Tensor],
    parameters: list[Tensor],
    world_size: int,
) -> Gradients:
    """The total's gradient through some of its terms only, the mean over processes."""
    with_graph = [term for term in terms if term.requires_grad]
    if not with_graph:
        return [None] * len(parameters)
    # Each term's factor in the total: its weight, times what mixed precision and the accumulation
    # of gradients multiplied the total by.
    factors = torch.autograd.grad(total, with_graph, retain_graph=True)
    gradients = torch.autograd.grad(
        with_graph,
        parameters,
        grad_outputs=factors,
        retain_graph=True,
        allow_unused=True,
    )
    if world_size > 1:
        average_over_processes(gradients, world_size)
    return gradients


def average_over_processes(gradients: Gradients, world_size: int) -> None:
    """Replace gradients by their mean over all processes, in one collective operation.

    Args:
        gradients: in every process of the same parameters; changed in place.
        world_size: number of processes.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return
    flat = torch.cat([gradient.flatten() for gradient in present])
    torch.distributed.all_reduce(flat)
    flat /= world_size
    sizes = [gradient.numel() for gradient in present]
    for gradient, mean in zip(present, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    if parameter.grad is None:
        # Autograd may return views of one tensor.
        parameter.grad = gradient.detach().clone()
    else:
        parameter.grad += gradient


def clip_separately(
    optimizer: SplitOptimizer,
    value: float,
    algorithm: str | None,
) -> None:
    """Clip the gradient of the hard losses and that of the soft losses, each by itself.

    Args:
        optimizer: holds the gradients.
        value: the largest norm, or the largest absolute value of an entry.
        algorithm: "norm" or "value"; `None` for "norm".
    """
    pairs = optimizer.all_pairs()
    for kind in zip(*pairs, strict=True):
        if algorithm == "value":
            nn.utils.clip_grad_value_(kind, value)
        else:
            nn.utils.clip_grad_norm_(kind, value)


def check_both_kinds(
    optimizer: Optimizer,
    hard: Sequence[str],
    soft: Sequence[str],
) -> None:
    """Refuse losses of one kind only if the optimizer tells the kinds apart.

    Args:
        optimizer: any.
        hard: names of the hard losses.
        soft: names of the soft losses.

    Raises:
        UserError: one line.
    """
    if not isinstance(optimizer, SplitOptimizer) or (hard and soft):
        return
    missing = "hard" if soft else "soft"
    example = "ce" if soft else "kd"
    raise UserError(
        f"model.optimizer: {type(optimizer).__name__} treats hard and soft losses differently, but "
        f"no loss is {missing} (model.losses: {', '.join([*hard, *soft])}); add one, such as "
        f"{example}, or use torch.optim.SGD"
    )
