"""Accumulated gradients of unequal batches are those of one large batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DataModule, Source
from kd_lightning.data.windows import in_windows
from kd_lightning.losses import KD, CrossEntropy
from kd_lightning.losses.base import DistillLoss
from kd_lightning.spec import Spec
from kd_lightning.tasks import LanguageModelling
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule, Objective
from kd_lightning.types import CLEAN, UNLABELLED, Batch, Output, Window

LENGTH = 4
TEXTS = 10
V = 6
EXISTS = torch.tensor([1, 4, 2, 4, 3, 1, 1, 4, 2, 3])
"""How many tokens of each text exist; the others are padding."""


class Texts(Source):
    """Ragged texts; some of their tokens have no label."""

    split = "train"

    def __init__(self) -> None:
        self.rows = torch.arange(TEXTS)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, V, (TEXTS, LENGTH), generator=generator)
        self.target = torch.randint(0, V, (TEXTS, LENGTH), generator=generator)
        self.target[1:4, 0] = UNLABELLED

    def batch(self, rows: Tensor, view: int) -> Batch:
        exists = torch.arange(LENGTH) < EXISTS[rows][:, None]
        return Batch(
            inputs=self.ids[rows],
            target=self.target[rows],
            index=rows,
            view=view,
            positions=exists.flatten().nonzero().flatten(),
        )


class TextData(DataModule):
    task = LanguageModelling()
    shuffled = False

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = TEXTS

    def source(self, stage: str) -> Texts:
        return Texts()

    @property
    def spec(self) -> Spec:
        return Spec(
            data="texts",
            task=self.task.name,
            input_shape=(LENGTH,),
            num_classes=V,
            target_shape=(LENGTH,),
        )

    def fingerprint(self) -> dict[str, object]:
        return {"samples": "texts"}


class Bigrams(nn.Module):
    """Logits of the next token from the last one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(V, V, generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids.long()]


def trained(batch_size: int, accumulate: int, weights: tuple[float, float]) -> Tensor:
    """The student's weights after an epoch of plain gradient descent."""
    losses: dict[str, DistillLoss] = {
        "ce": CrossEntropy(weight=weights[0]),
        "kd": KD(temperature=2.0, weight=weights[1]),
    }
    module = DistillationModule(
        student=Bigrams(0),
        teacher=ModelTeacher(network=Bigrams(1)),
        losses=losses,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )
    options: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    trainer = pl.Trainer(**options, accumulate_grad_batches=accumulate)
    trainer.fit(module, datamodule=TextData(batch_size))
    assert isinstance(module.student, Bigrams)
    return module.student.table.detach()


@pytest.mark.parametrize(
    "weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)], ids=["ce", "kd", "both"]
)
@pytest.mark.parametrize(("size", "accumulate"), [(1, 10), (2, 5), (5, 2), (3, 4)])
def test_micro_batches_equal_one_batch(
    size: int, accumulate: int, weights: tuple[float, float]
) -> None:
    """Also where the last of the four batches of an epoch is smaller."""
    expected = trained(TEXTS, 1, weights)
    actual = trained(size, accumulate, weights)
    assert not torch.equal(expected, Bigrams(0).table)
    torch.testing.assert_close(actual, expected)


def test_an_incomplete_last_window_counts_in_full() -> None:
    """Two windows of five batches and one of two: each has its own mean."""
    expected = trained(4, 1, (0.3, 0.7))
    actual = trained(1, 4, (0.3, 0.7))
    # Lightning divides the last window, of two batches, by four: the scale makes up for it.
    torch.testing.assert_close(actual, expected)


def numbered(sizes: list[int]) -> Iterator[Batch]:
    for size in sizes:
        rows = torch.arange(size)
        yield Batch(inputs=rows, target=rows, index=rows)


def test_windows_count_all_of_their_batches() -> None:
    windows = [batch.window for batch in in_windows(numbered([3, 1, 2]), 2, 0)]
    first = Window(2, 2, 4, 4, 4)
    assert windows == [first, first, Window(2, 1, 2, 2, 2)]
    assert first.mean_weight("rows") == 2.0
    assert first.mean_weight("joint") == 1.0
    # A run that resumes in the middle of a window completes that window first.
    resumed = [batch.window for batch in in_windows(numbered([1, 2, 3]), 2, 1)]
    assert resumed == [Window(2, 1, 1, 1, 1), *[Window(2, 2, 5, 5, 5)] * 2]


def test_windows_of_two_processes_are_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes with two batches each: the mean gradient is that of all rows at once."""
    data = TextData(TEXTS)
    texts = data.source("train")
    networks = (Bigrams(0), Bigrams(1))

    def batches(rank: int) -> list[Batch]:
        parts = (torch.arange(TEXTS)[rank::2]).split(3)
        return list(in_windows((texts.batch(rows, CLEAN) for rows in parts), 2, 0))

    def rows_of(network: Bigrams, batch: Batch) -> Output:
        assert isinstance(batch.inputs, Tensor)
        return Output(data.task.rows(network(batch.inputs), batch))

    def value(batch: Batch, processes: int) -> Tensor:
        objective = Objective({"ce": CrossEntropy(weight=0.3), "kd": KD(2.0)})
        objective.begin_epoch(0, processes)
        outputs = [rows_of(network, batch) for network in networks]
        total: Tensor = objective(outputs[0], outputs[1], batch).total
        return total

    # First note what each process contributes to the sum over processes, then add it.
    counts: dict[tuple[int, int], Tensor] = {}
    places = [(step, rank) for step in (0, 1) for rank in (0, 1)]
    for place in places:

        def note(joint: Tensor, place: tuple[int, int] = place) -> None:
            counts[place] = joint.clone()

        monkeypatch.setattr("torch.distributed.all_reduce", note)
        value(batches(place[1])[place[0]], processes=2)
    totals = torch.zeros(())
    for step, rank in places:

        def add(joint: Tensor, other: Tensor = counts[step, 1 - rank]) -> None:
            joint += other

        monkeypatch.setattr("torch.distributed.all_reduce", add)
        term = value(batches(rank)[step], processes=2)
        assert term.dtype == torch.float32
        # DDP takes the mean over processes, Lightning that over the window.
        totals = totals + term / 4
    whole = value(texts.batch(torch.arange(TEXTS), CLEAN), processes=1)
    torch.testing.assert_close(totals, whole)
