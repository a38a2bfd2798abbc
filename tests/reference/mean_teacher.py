"""Mean teacher as a loop of plain torch: Tarvainen and Valpola 2017, equation 2 and their ramp of the decay."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def train(
    student: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    decay: float,
    weight: float,
    lr: float = 0.1,
    momentum: float = 0.9,
    average_buffers: bool = True,
) -> nn.Module:
    """Train the student in place; returns the teacher. A label below 0 is unknown."""
    teacher = copy.deepcopy(student).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum)
    for step, (inputs, labels) in enumerate(batches, start=1):
        with torch.no_grad():
            p = torch.softmax(teacher(inputs), 1)
        logits = student(inputs)
        known = labels >= 0
        q = torch.softmax(logits, 1)
        loss = weight * ((q - p) ** 2).sum(1).mean() / p.shape[1]
        if known.any():
            loss = loss + nn.functional.cross_entropy(logits[known], labels[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        keep = min(1 - 1 / (step + 1), decay)
        own = teacher.state_dict()
        parameters = dict(student.named_parameters())
        for name, value in student.state_dict().items():
            averaged = name in parameters or average_buffers
            if averaged and value.is_floating_point():
                own[name].mul_(keep).add_(value, alpha=1 - keep)
            else:
                own[name].copy_(value)
    return teacher
