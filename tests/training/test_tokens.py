"""Distillation of language models: the mistakes that other frameworks had, as tests.

Shift, padding, prompts, empty batches and the mean over tokens, through the data, a network of
transformers and an Objective.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data import BytePairTokenizer, TextCorpusDataModule
from kd_lightning.losses import (
    GJSD,
    KD,
    AdaptiveKL,
    CrossEntropy,
    DistillLoss,
    LogitMSE,
    ReverseKL,
    SkewKL,
    TotalVariation,
)
from kd_lightning.models import CausalLanguageModel
from kd_lightning.training import Objective
from kd_lightning.types import CLEAN, Batch, Output

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

PROMPTS = [("Question: one?", " Yes."), ("Q", " A longer answer, with more words.")]
SOFT: tuple[Callable[[], DistillLoss], ...] = (
    KD,
    ReverseKL,
    GJSD,
    SkewKL,
    AdaptiveKL,
    TotalVariation,
    LogitMSE,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextCorpusDataModule:
    """Prompts and completions of unequal lengths, one per block."""
    root = tmp_path_factory.mktemp("prompts")
    lines = []
    for prompt, completion in PROMPTS:
        lines.append(json.dumps({"prompt": prompt, "completion": completion}))
    (root / "all.jsonl").write_text("\n".join(lines))
    return TextCorpusDataModule(
        root=str(root),
        train="all.jsonl",
        validation=0.0,
        test="all.jsonl",
        tokenizer=BytePairTokenizer(260),
        length=64,
        packed=False,
        cache=str(root / "cache"),
    )


def network(data: TextCorpusDataModule, seed: int) -> CausalLanguageModel:
    architecture: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    model = CausalLanguageModel(
        architecture=architecture, num_classes=data.spec.num_classes
    )
    return model.double().eval()


def padded_batch(data: TextCorpusDataModule) -> Batch:
    return data.source("train").batch(torch.arange(len(PROMPTS)), CLEAN)


def rows(
    model: CausalLanguageModel, data: TextCorpusDataModule, batch: Batch
) -> Output:
    assert isinstance(batch.inputs, dict)
    return Output(data.task.rows(model(**batch.inputs), batch))


def gradients(model: CausalLanguageModel, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters())))


def completions(
    data: TextCorpusDataModule, model: CausalLanguageModel
) -> list[tuple[Tensor, list[int]]]:
    """By hand: for each text alone, the logits `(n, V)` that predict its completion, and the ids."""
    result = []
    for prompt, completion in PROMPTS:
        prompt_ids, text_ids = data.tokenizer.encode([prompt, completion])
        predicted = [*text_ids, data.tokenizer.end]
        ids = torch.tensor([prompt_ids + predicted])
        logits = model(ids)[0]
        # The last token of the prompt predicts the first one of the completion.
        first = len(prompt_ids) - 1
        result.append((logits[first : first + len(predicted)], predicted))
    return result


def test_loss_and_gradient_are_those_of_a_loop_over_unpadded_texts(
    data: TextCorpusDataModule,
) -> None:
    student = network(data, 0)
    teacher = network(data, 1)
    batch = padded_batch(data)
    output = rows(student, data, batch)
    target = rows(teacher, data, batch)
    hard = CrossEntropy()(output, None, batch)
    soft = KD(temperature=2.0)(output, target, batch)

    sum_hard = torch.zeros((), dtype=torch.float64)
    sum_soft = torch.zeros((), dtype=torch.float64)
    tokens = 0
    pairs = zip(completions(data, student), completions(data, teacher), strict=True)
    for (own, ids), (other, _) in pairs:
        for position, token in enumerate(ids):
            log_q = (own[position] / 2).log_softmax(-1)
            log_p = (other[position] / 2).log_softmax(-1)
            sum_soft = sum_soft + 4 * (log_p.exp() * (log_p - log_q)).sum()
            sum_hard = sum_hard - own[position].log_softmax(-1)[token]
            tokens += 1
    assert tokens == batch.num_rows
    torch.testing.assert_close(hard, sum_hard / tokens)
    torch.testing.assert_close(soft, sum_soft / tokens)
    expected = gradients(student, (sum_hard + sum_soft.clone()) / tokens)
    output = rows(student, data, batch)
    again = CrossEntropy()(output, None, batch) + KD(temperature=2.0)(
        output, target, batch
    )
    for actual, wanted in zip(gradients(student, again), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_garbage_in_the_padding_changes_nothing(data: TextCorpusDataModule) -> None:
    student = network(data, 0)
    batch = padded_batch(data)
    value = CrossEntropy()(rows(student, data, batch), None, batch)
    assert isinstance(batch.inputs, dict)
    ids = batch.inputs["input_ids"]
    ends = (ids == data.tokenizer.end).long().cumsum(1) > 0
    assert bool(ends.any())
    garbage = torch.randint(1, data.spec.num_classes, ids.shape)
    spoiled = Batch(
        inputs={"input_ids": torch.where(ends, garbage, ids)},
        # The targets of positions that do not count are never read.
        target=batch.target.where(batch.target != data.tokenizer.end, garbage),
        index=batch.index,
        positions=batch.positions,
    )
    # The end of each text is a target, though the padding has the same id.
    assert batch.positions is not None
    kept = batch.target.flatten()[batch.positions]
    assert int((kept == data.tokenizer.end).sum()) == len(PROMPTS)
    spoiled.target.view(-1)[batch.positions] = kept
    other = CrossEntropy()(rows(student, data, spoiled), None, spoiled)
    torch.testing.assert_close(other, value)


def test_a_teacher_that_knows_the_next_token_is_right_only_if_aligned(
    data: TextCorpusDataModule,
) -> None:
    batch = padded_batch(data)
    certain = F.one_hot(batch.target, data.spec.num_classes).double() * 1e4
    aligned = Output(data.task.rows(certain, batch))
    assert CrossEntropy()(aligned, None, batch).item() == pytest.approx(0.0)
    for shift in (-1, 1):
        shifted = Output(data.task.rows(certain.roll(shift, dims=1), batch))
        assert CrossEntropy()(shifted, None, batch).item() > 1e3


@pytest.mark.parametrize("make", [*SOFT, CrossEntropy])
def test_a_batch_without_a_token_costs_nothing(
    make: Callable[[], DistillLoss], data: TextCorpusDataModule
) -> None:
    student = network(data, 0)
    batch = padded_batch(data)
    batch.positions = torch.zeros(0, dtype=torch.int64)
    objective = Objective({"loss": make()})
    objective.begin_epoch(0)
    value = objective(
        rows(student, data, batch), rows(network(data, 1), data, batch), batch
    ).total
    value.backward()  # fails without a graph
    assert value.item() == 0
    for parameter in student.parameters():
        assert parameter.grad is None or not bool(parameter.grad.isnan().any())


@pytest.mark.parametrize("make", SOFT)
def test_equal_networks_have_no_gradient(
    make: Callable[[], DistillLoss], data: TextCorpusDataModule
) -> None:
    student = network(data, 0)
    batch = padded_batch(data)
    target = rows(network(data, 0), data, batch)
    value = make()(rows(student, data, batch), target, batch)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    for gradient in gradients(student, value):
        assert gradient.abs().max().item() < 1e-9


def test_the_gradient_keeps_its_size_at_every_temperature(
    data: TextCorpusDataModule,
) -> None:
    """T^2 is in the value and in the gradient."""
    student = network(data, 0)
    teacher = network(data, 1)
    batch = padded_batch(data)
    norms = []
    for temperature in (4.0, 16.0):
        value = KD(temperature)(
            rows(student, data, batch), rows(teacher, data, batch), batch
        )
        norms.append(sum(g.square().sum() for g in gradients(student, value)))
    assert float(norms[1] / norms[0]) == pytest.approx(1.0, rel=0.05)


def test_unpacked_and_packed_blocks_of_whole_texts_are_equal(
    tmp_path: Path,
) -> None:
    """Texts that fill blocks exactly: the same predictions whether or not they share a block."""
    texts = ["aaaaaaa", "bbb", "ccc", "ddddddd"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    options: dict[str, Any] = {
        "root": str(tmp_path),
        "train": "all.jsonl",
        "validation": 0.0,
        "test": "all.jsonl",
        "cache": str(tmp_path / "cache"),
    }
    # No pair of bytes is merged: a token is a byte.
    packed = TextCorpusDataModule(**options, tokenizer=BytePairTokenizer(257), length=8)
    alone = TextCorpusDataModule(
        **options, tokenizer=BytePairTokenizer(257), length=8, packed=False
    )
    student = network(packed, 0)
    values = []
    for data in (packed, alone):
        source = data.source("train")
        batch = source.batch(torch.arange(len(source)), CLEAN)
        output = rows(student, data, batch)
        value = CrossEntropy()(output, None, batch)
        values.append((batch.num_rows, value))
    assert values[0][0] == values[1][0] == sum(len(text) for text in texts)
    torch.testing.assert_close(values[0][1], values[1][1])
