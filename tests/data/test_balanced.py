"""Epochs of weighted draws, and epochs without a short last batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning.data import TensorDataModule
from kd_lightning.data.schedule import Schedule
from kd_lightning.errors import UserError
from kd_lightning.randomness import weighted_draws
from kd_lightning.tasks import Regression

COUNTS = [900, 90, 10]


class Skewed(TensorDataModule):
    """Three classes of very different size."""

    def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
        target = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
        return torch.zeros(len(target), 2), target


def drawn(data: TensorDataModule, epoch: int) -> Tensor:
    loader = data.loader("train")
    loader.set_epoch(epoch)
    return torch.cat([batch.target for batch in loader])


def test_classes_are_equally_frequent() -> None:
    balanced = drawn(Skewed(balanced=True), 0).bincount()
    assert int(balanced.sum()) == sum(COUNTS)
    # 1,000 draws of probability 1/3 have a standard deviation of 15.
    assert (balanced - 1000 / 3).abs().max() < 60
    assert drawn(Skewed(), 0).bincount().tolist() == COUNTS


def test_draws_depend_on_the_epoch_alone() -> None:
    data = Skewed(balanced=True)
    first = drawn(data, 3)
    assert not torch.equal(first, drawn(data, 4))
    assert torch.equal(first, drawn(data, 3))


def test_evaluation_is_not_balanced() -> None:
    loader = Skewed(balanced=True).loader("validation")
    assert torch.cat([batch.target for batch in loader]).bincount().tolist() == COUNTS


def test_processes_share_one_draw() -> None:
    weights = torch.arange(1, 11, dtype=torch.float64)
    whole = Schedule(10, 4, shuffle=True, weights=weights)
    halves = [
        Schedule(10, 2, shuffle=True, weights=weights, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for step, *parts in zip(
        whole.steps(2), *(half.steps(2) for half in halves), strict=True
    ):
        joined = torch.stack([part.rows for part in parts], 1).flatten()
        assert torch.equal(step.rows, joined)


def test_draws_follow_the_weights() -> None:
    weights = torch.zeros(40_000, dtype=torch.float64)
    weights[:3] = torch.tensor([1.0, 2.0, 5.0])
    counts = weighted_draws(weights, 0).bincount(minlength=len(weights))
    assert int(counts[3:].sum()) == 0
    assert (counts[:3] / 40_000).tolist() == pytest.approx(
        [1 / 8, 2 / 8, 5 / 8], abs=0.02
    )


def test_targets_without_classes_cannot_be_balanced() -> None:
    class Values(TensorDataModule):
        def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
            return torch.zeros(4, 2), torch.zeros(4, 1)

    with pytest.raises(UserError, match=r"data\.balanced needs samples with classes"):
        Values(balanced=True, task=Regression()).loader("train")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_drop_last(shuffle: bool, world_size: int) -> None:
    schedule = Schedule(11, 2, shuffle=shuffle, drop_last=True, world_size=world_size)
    steps = list(schedule.steps(0))
    assert len(steps) == len(schedule) == 11 // (2 * world_size)
    assert all(len(step.rows) == 2 for step in steps)
    assert len(list(schedule.steps(0, first=1))) == len(steps) - 1
