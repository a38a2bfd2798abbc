"""Mistakes in a user's own network end a run in one line that says what they are."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.runs import COMMON, Kd


class Plain(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.layer(images.flatten(1)))


class Detached(Plain):
    """Gives numbers without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Frozen(Plain):
    """Has no weight to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Stateful(Plain):
    """Adds a part of its last output, as a hidden state that is never detached."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(1, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images) + self.state
        if self.training:
            self.state = logits.mean(0, keepdim=True)
        return logits


class InPlace(Plain):
    """Overwrites what its gradient needs."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images).exp()
        logits += 1
        return logits


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Detached, "no loss depends on what is trained; does the network detach"),
        (Frozen, "nothing is trained: no weight of Frozen or its losses requires"),
        (Stateful, "the network keeps tensors of an earlier step"),
        (InPlace, "a network changes a tensor in place"),
    ],
)
def test_a_network_without_gradients(
    network: type[nn.Module], message: str, kd: Kd
) -> None:
    outcome = kd(
        "fit",
        *COMMON,
        "--model=kd_lightning.ClassifierModule",
        f"--model.network={__name__}.{network.__name__}",
        "--trainer.limit_train_batches=3",
        "--run.report=false",
    )
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
