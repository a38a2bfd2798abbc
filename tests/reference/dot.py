"""DOT (Zhao et al. 2023) and SGD with momentum in plain loops, independent of the code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[nn.Module, int], tuple[Tensor, Tensor]]
"""From a network and the number of a step to the weighted hard and soft loss."""


def train(
    network: nn.Module,
    losses: Step,
    steps: int,
    lr: float,
    momentum: float,
    delta: float,
    decay: float = 0.0,
    clip: float | None = None,
) -> None:
    """Train a network whose parameters all take part in both losses."""
    parameters = list(network.parameters())
    hard_buffers: list[Tensor] = []
    soft_buffers: list[Tensor] = []
    for step in range(steps):
        hard, soft = losses(network, step)
        g_hard = clipped(gradients(hard, parameters), clip)
        g_soft = clipped(gradients(soft, parameters), clip)
        with torch.no_grad():
            for n, parameter in enumerate(parameters):
                first = g_hard[n] + decay * parameter
                if step == 0:
                    hard_buffers.append(first)
                    soft_buffers.append(g_soft[n])
                else:
                    hard_buffers[n] = (momentum - delta) * hard_buffers[n] + first
                    soft_buffers[n] = (momentum + delta) * soft_buffers[n] + g_soft[n]
                parameter.sub_(lr * (hard_buffers[n] + soft_buffers[n]))


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = None
    loss.backward(retain_graph=True)
    own = []
    for parameter in parameters:
        assert parameter.grad is not None
        own.append(parameter.grad.clone())
        parameter.grad = None
    return own


def clipped(own: list[Tensor], largest: float | None) -> list[Tensor]:
    """All gradients together scaled to a norm of at most `largest`."""
    norm = sum(float(gradient.square().sum()) for gradient in own) ** 0.5
    if largest is None or norm <= largest:
        return own
    return [gradient * largest / norm for gradient in own]
