"""Metrics of language models, against a loop over single tokens."""

from __future__ import annotations

import math

import pytest
import torch

from kd_lightning.spec import Spec
from kd_lightning.tasks import LanguageModelling
from kd_lightning.types import Batch, Output

SPEC = Spec(num_classes=5, target_shape=(3,))
BYTES = torch.tensor([0, 1, 2, 3, 4])


def batch(target: list[list[int]], positions: list[int] | None = None) -> Batch:
    return Batch(
        inputs=torch.zeros(len(target), 3, dtype=torch.int64),
        target=torch.tensor(target),
        index=torch.arange(len(target)),
        positions=None if positions is None else torch.tensor(positions),
    )


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator)


def test_metrics_are_means_over_tokens_of_all_batches() -> None:
    first = batch([[1, 2, 3], [4, 1, 1]], positions=[0, 1, 3])
    second = batch([[2, -100, 4]])
    metrics = LanguageModelling(lambda: BYTES).metrics(SPEC)
    nll = 0.0
    size = 0
    errors = 0
    tokens = 0
    for each in (first, second):
        rows = logits(each.num_rows, seed=each.num_rows + len(each))
        metrics.update(Output(rows), None, each)
        for row, label in zip(rows.double(), each.labels.tolist(), strict=True):
            if label == -100:
                continue
            probs = row.exp() / row.exp().sum()
            nll -= math.log(float(probs[label]))
            errors += int(probs.argmax()) != label
            size += int(BYTES[label])
            tokens += 1
    assert tokens == 5
    values = metrics.compute()
    assert set(values) <= set(metrics.names())
    assert values["nll"].item() == pytest.approx(nll / tokens, rel=1e-6)
    assert values["perplexity"].item() == pytest.approx(
        math.exp(nll / tokens), rel=1e-6
    )
    assert values["bits_per_byte"].item() == pytest.approx(
        nll / size / math.log(2), rel=1e-6
    )
    assert values["errors"].item() == errors


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """Two uniform models of the same text: one token of four bytes, or four of one byte."""
    task = LanguageModelling(lambda: torch.tensor([1, 1, 1, 1, 4]))
    whole = task.metrics(SPEC)
    # 1/16 for one token, and 1/2 for each of four: the same probability of the text.
    rows = torch.tensor([[0.0] * 4 + [math.log(4 / 15)]])
    one = Batch(torch.zeros(1, 1), torch.tensor([[4]]), torch.tensor([0]))
    whole.update(Output(rows), None, one)
    pieces = task.metrics(SPEC)
    halves = torch.full((4, 5), -torch.inf)
    halves[:, :2] = 0.0
    four = Batch(torch.zeros(1, 4), torch.tensor([[0, 1, 0, 1]]), torch.tensor([0]))
    pieces.update(Output(halves), None, four)
    first = whole.compute()["bits_per_byte"].item()
    assert first == pytest.approx(pieces.compute()["bits_per_byte"].item())
    assert first == pytest.approx(1.0)


def test_without_bytes_there_are_no_bits_per_byte() -> None:
    metrics = LanguageModelling().metrics(SPEC)
    metrics.update(Output(logits(3)), None, batch([[1, 2, 3]]))
    assert "bits_per_byte" not in metrics.compute()
    assert "bits_per_byte" not in metrics.names()
    assert metrics.state_dict() == {}


def test_a_test_stores_sums_per_text() -> None:
    task = LanguageModelling()
    given = batch([[1, 2, 3], [4, 1, 1]], positions=[0, 1, 3])
    stored = task.test_outputs(Output(logits(3)), given)
    assert stored["labelled_tokens"].tolist() == [2, 1]
    assert task.sample_counts(stored).tolist() == stored["wrong_tokens"].tolist()
