"""Fetching: several views of a sample in one batch, batches ahead of time, joined teacher outputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_lightning.data import BatchLoader, DigitsDataModule, Jitter
from kd_lightning.data.fetch import prefetched
from kd_lightning.data.schedule import Schedule
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher
from kd_lightning.types import CLEAN, Batch
from tests.training.small import complaint, mlp


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


def jittered(copies: int = 1, views: int | None = None) -> DigitsDataModule:
    return DigitsDataModule(
        batch_size=16, fraction=0.1, augment=[Jitter(1)], copies=copies, views=views
    )


def epoch(loader: BatchLoader, number: int) -> list[Batch]:
    loader.set_epoch(number)
    return list(loader)


# -- several views of a sample -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "number", "expected"),
    [(None, 0, (0, 1)), (None, 3, (6, 7)), (3, 1, (2, 0)), (0, 5, (CLEAN, CLEAN))],
)
def test_an_epoch_shows_consecutive_draws(
    views: int | None, number: int, expected: tuple[int, int]
) -> None:
    assert Schedule(10, 2, views=views, copies=2).views_of(number) == expected


def test_each_view_is_a_row() -> None:
    """Row `v * B + i` is sample `i` as a batch of that view alone would show it."""
    data = jittered(copies=2)
    source = data.source("train")
    position = {row: at for at, row in enumerate(source.rows.tolist())}
    for batch in epoch(data.train_dataloader(), 3):
        assert isinstance(batch.view, Tensor)
        half = len(batch) // 2
        assert batch.view.tolist() == [6] * half + [7] * half
        assert torch.equal(batch.index[:half], batch.index[half:])
        rows = torch.tensor([position[row] for row in batch.index[:half].tolist()])
        for view, part in ((6, slice(None, half)), (7, slice(half, None))):
            alone = source.batch(rows, view)
            assert torch.equal(inputs_of(batch)[part], inputs_of(alone))
            assert torch.equal(batch.target[part], alone.target)


def test_validation_shows_each_sample_once() -> None:
    data = jittered(copies=2)
    loader = data.loader("validation")
    assert sum(len(batch) for batch in loader) == len(data.source("validation"))


def test_a_cache_serves_several_views(tmp_path: Path) -> None:
    data = jittered(copies=2, views=3)
    live = ModelTeacher(network=mlp())
    cache_teacher(live, data, tmp_path / "cache", views=3)
    cached = CachedTeacher(str(tmp_path / "cache"))
    cached.prepare(data)
    loader = data.train_dataloader()
    loader.join = cached.join
    for batch in epoch(loader, 1):
        assert batch.joined is not None
        torch.testing.assert_close(
            cached(batch).logits, live(batch).logits, rtol=0, atol=1e-5
        )
        # A loop that joins nothing reads the same values by the batch's index and view.
        joined = cached(batch).logits
        batch.joined = None
        assert torch.equal(cached(batch).logits, joined)


def test_copies_must_be_positive() -> None:
    assert "data.copies must be at least 1" in complaint(lambda: jittered(copies=0))


# -- ahead of time -----------------------------------------------------------------------------------------------------


def test_prefetched_batches_are_the_same() -> None:
    data = jittered()
    plain = epoch(data.train_dataloader(), 2)
    loader = data.train_dataloader()
    loader.prefetch = 2
    ahead = epoch(loader, 2)
    assert len(ahead) == len(plain)
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(inputs_of(one), inputs_of(other))
        assert torch.equal(one.index, other.index)


def test_the_thread_ends_with_its_consumer() -> None:
    loader = jittered().train_dataloader()
    loader.prefetch = 1
    threads = threading.active_count()
    iterator = iter(loader)
    next(iterator)
    assert threading.active_count() == threads + 1
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_an_error_in_the_thread_reaches_the_consumer() -> None:
    def broken() -> Iterator[Batch]:
        yield Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1))
        raise ValueError("the disk is gone")

    batches = prefetched(broken(), depth=1)
    next(batches)
    with pytest.raises(ValueError, match="the disk is gone"):
        next(batches)
