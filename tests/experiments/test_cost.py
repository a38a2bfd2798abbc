"""The costs of a network: parameters, FLOPs and the size of its file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd_lightning.experiments.cost import measure
from kd_lightning.spec import Spec


class Tied(nn.Module):
    """Two layers with one weight, as the first and the last layer of a language model."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.last = nn.Linear(64, 64, bias=False)
        if tied:
            self.last.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(inputs))
        return logits


def test_tied_weights_count_once() -> None:
    spec = Spec(input_shape=(64,), num_classes=64)
    whole = measure(Tied(False), spec, batches=())
    tied = measure(Tied(True), spec, batches=())
    size = 64 * 64
    assert whole["parameters"] - tied["parameters"] == size
    saved = whole["file_bytes"] - tied["file_bytes"]
    assert 4 * size <= saved < 4 * size + 200
    # They still compute as much.
    assert tied["flops"] == whole["flops"] == 2 * 2 * size


def test_other_memory_layouts_have_a_size() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    costs = measure(network, Spec(input_shape=(3, 8, 8), num_classes=4), batches=())
    assert costs["file_bytes"] > 4 * 4 * 3 * 9
