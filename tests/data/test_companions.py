"""Pairs of samples of one class: a function of seed and epoch, shared by all processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_lightning.data import BatchLoader, Source, TensorDataModule
from kd_lightning.data.schedule import Schedule, companions
from kd_lightning.errors import UserError
from kd_lightning.tasks import Regression
from kd_lightning.types import UNLABELLED, Batch

CLASSES = torch.tensor([2, 0, 1, 0, 2, 0, 3, 1, 0, 2, 2, 1])
"""Class 3 has a single sample."""


def test_a_companion_is_another_sample_of_the_class() -> None:
    for epoch in range(50):
        chosen = companions(CLASSES, 0, epoch)
        assert torch.equal(CLASSES[chosen], CLASSES)
        itself = chosen == torch.arange(len(CLASSES))
        assert torch.equal(itself, CLASSES == 3)


def test_all_others_are_equally_likely() -> None:
    draws = torch.stack([companions(CLASSES, 1, epoch)[1] for epoch in range(1500)])
    counts = draws.bincount(minlength=12)
    # 500 draws each, with a standard deviation of 18.
    assert counts.nonzero().flatten().tolist() == [3, 5, 8]
    assert (counts[[3, 5, 8]] - 500).abs().max() < 75


def test_a_function_of_seed_and_epoch() -> None:
    first = companions(CLASSES, 0, 3)
    torch.manual_seed(5)
    assert torch.equal(companions(CLASSES, 0, 3), first)
    assert not torch.equal(companions(CLASSES, 0, 4), first)
    assert not torch.equal(companions(CLASSES, 1, 3), first)


def test_processes_share_the_pairs_and_a_resumed_epoch_repeats_them() -> None:
    def schedule(size: int, rank: int = 0, world_size: int = 1) -> Schedule:
        return Schedule(
            12,
            size,
            shuffle=True,
            rank=rank,
            world_size=world_size,
            classes=lambda: CLASSES,
        )

    def sets(rows: Tensor) -> set[tuple[int, int]]:
        first, second = rows.chunk(2)
        return set(zip(first.tolist(), second.tolist(), strict=True))

    # Two steps of six samples, two for each of three processes.
    whole = list(schedule(6).steps(2))
    ranks = [list(schedule(2, rank, 3).steps(2)) for rank in range(3)]
    for step, *parts in zip(whole, *ranks, strict=True):
        assert all(part.paired for part in parts)
        joined = set().union(*(sets(part.rows) for part in parts))
        assert joined == sets(step.rows)
        assert torch.equal(CLASSES[step.rows[:6]], CLASSES[step.rows[6:]])
    resumed = list(schedule(6).steps(2, first=1))
    assert torch.equal(resumed[0].rows, whole[1].rows)


def test_a_placeholder_has_a_companion_too() -> None:
    [step] = Schedule(1, 1, rank=1, world_size=2, classes=lambda: torch.zeros(1)).steps(
        0
    )
    assert step.placeholder
    assert step.rows.tolist() == [0, 0]


class Points(TensorDataModule):
    """Twelve samples that are their own numbers."""

    def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
        return torch.arange(12.0)[:, None], CLASSES


@pytest.mark.parametrize("fetch", [0, 8, 100])
def test_labels_of_companions_are_withheld_from_this_batch_alone(fetch: int) -> None:
    data = Points(batch_size=4)
    data.class_pairs = True
    loader = data.train_dataloader()
    assert isinstance(loader, BatchLoader)
    loader.fetch = fetch
    for batch in loader:
        assert batch.paired
        assert len(batch) == 8
        first, second = batch.index.chunk(2)
        assert torch.equal(CLASSES[first], CLASSES[second])
        assert isinstance(batch.inputs, Tensor)
        assert torch.equal(batch.inputs.flatten().long(), batch.index)
        assert torch.equal(batch.target[:4], CLASSES[first])
        assert (batch.target[4:] == UNLABELLED).all()
        moved = batch._map(torch.clone)
        assert moved.paired
    assert not (data.source("train").target == UNLABELLED).any()
    assert data.smallest_batch() == 8
    assert all(not batch.paired for batch in data.loader("test"))


class Numbers(Source):
    """Samples whose number is at once their input, their target and their row."""

    def __init__(self) -> None:
        self.rows = torch.arange(6)
        self.target = self.rows
        self.split = "train"

    def batch(self, rows: Tensor, view: int) -> Batch:
        return Batch(rows, rows, rows, view)


def test_withheld_labels_change_nothing_else() -> None:
    loader = BatchLoader(Numbers(), 3)
    loader.classes = lambda source: source.rows % 2
    for batch in loader:
        assert batch.index.min() >= 0
        assert (batch.target[3:] == UNLABELLED).all()


def test_samples_without_classes_have_no_pairs() -> None:
    class Values(TensorDataModule):
        def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
            return torch.zeros(4, 2), torch.zeros(4, 1)

    with pytest.raises(UserError, match="pairs of samples of one class need classes"):
        Values(task=Regression()).check_class_pairs()
