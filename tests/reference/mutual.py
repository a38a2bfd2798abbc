"""Deep mutual learning as a loop of plain torch: Zhang et al. 2018, algorithm 1, for n students.

One optimizer per student. Peers predict in training mode; their running statistics are put back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kl_from(peer: Tensor, own: Tensor) -> Tensor:
    """KL(p_peer || p_own) in nats, mean over rows, from logits."""
    p = torch.softmax(peer, 1)
    return (p * (torch.log_softmax(peer, 1) - torch.log_softmax(own, 1))).sum(1).mean()


def loss_of(own: Tensor, peers: list[Tensor], labels: Tensor) -> Tensor:
    """CE + 1 / (n - 1) sum of KLs, equation 8."""
    hard = nn.functional.cross_entropy(own, labels)
    soft = sum((kl_from(peer, own) for peer in peers), torch.zeros((), dtype=own.dtype))
    return hard + soft / len(peers)


def prediction(network: nn.Module, inputs: Tensor) -> Tensor:
    """Logits that carry no graph and leave no trace."""
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad():
        logits: Tensor = network(inputs)
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
    return logits


def train(
    students: list[nn.Module],
    batches: list[tuple[Tensor, Tensor]],
    in_turn: bool,
    lr: float = 0.1,
    momentum: float = 0.9,
) -> list[list[float]]:
    """Train in place; returns each student's loss in each step."""
    optimizers = [
        torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
        for student in students
    ]
    seen = []
    for inputs, labels in batches:
        logits = [prediction(student, inputs) for student in students]
        losses = []
        for number, student in enumerate(students):
            peers = [each for other, each in enumerate(logits) if other != number]
            loss = loss_of(student(inputs), peers, labels)
            optimizers[number].zero_grad()
            loss.backward()
            if in_turn:
                optimizers[number].step()
                logits[number] = prediction(student, inputs)
            losses.append(loss.item())
        if not in_turn:
            for optimizer in optimizers:
                optimizer.step()
        seen.append(losses)
    return seen
