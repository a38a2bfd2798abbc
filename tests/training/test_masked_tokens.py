"""Distillation of masked language models: what a batch gives is what each text alone gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import BytePairTokenizer, MaskedTokens, TextCorpusDataModule
from kd_lightning.losses import KD, CrossEntropy
from kd_lightning.models import MaskedLanguageModel
from kd_lightning.types import Batch, Output

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

TEXTS = ["A first text of several words.", "Short.", "Then a third one, not so short."]
VIEW = 2


def corpus(root: Path, packed: bool) -> TextCorpusDataModule:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (root / "all.jsonl").write_text("\n".join(lines))
    return TextCorpusDataModule(
        root=str(root),
        train="all.jsonl",
        validation=0.0,
        test="all.jsonl",
        tokenizer=BytePairTokenizer(270, mask=True),
        prediction=MaskedTokens(0.3, seed=0),
        length=64,
        packed=packed,
        cache=str(root / "cache"),
    )


def network(data: TextCorpusDataModule, seed: int) -> MaskedLanguageModel:
    architecture: dict[str, Any] = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    model = MaskedLanguageModel(
        architecture=architecture, num_classes=data.spec.num_classes
    )
    return model.double().eval()


def batch_of(data: TextCorpusDataModule) -> Batch:
    source = data.source("train")
    return source.batch(torch.arange(len(source)), VIEW)


def rows(
    model: MaskedLanguageModel, data: TextCorpusDataModule, batch: Batch
) -> Output:
    assert isinstance(batch.inputs, Mapping)
    return Output(data.task.rows(model(**batch.inputs), batch))


def alone(batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The part of each document in a block: inputs, targets `(n,)`, and whether each is predicted."""
    assert isinstance(batch.inputs, Mapping)
    assert batch.positions is not None
    counts = torch.zeros(batch.target.numel(), dtype=torch.bool)
    counts[batch.positions] = True
    counts = counts.view(batch.target.shape)
    documents = batch.inputs.get("documents")
    if documents is None:
        documents = batch.inputs["attention_mask"] - 1
    for row in range(len(batch)):
        for document in documents[row].unique().tolist():
            place = documents[row] == document
            if document >= 0:
                ids = batch.inputs["input_ids"][row, place]
                yield ids, batch.target[row, place], counts[row, place]


@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradient_are_those_of_a_loop_over_single_texts(
    packed: bool, tmp_path: Path
) -> None:
    data = corpus(tmp_path, packed)
    student = network(data, 0)
    teacher = network(data, 1)
    batch = batch_of(data)
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for ids, target, counts in alone(batch):
        ones = torch.ones(1, len(ids), dtype=torch.int64)
        own = student(ids[None], ones)[0]
        other = teacher(ids[None], ones)[0].detach()
        for place in counts.nonzero().flatten().tolist():
            log_q = (own[place] / 2).log_softmax(-1)
            log_p = (other[place] / 2).log_softmax(-1)
            total = total + 4 * (log_p.exp() * (log_p - log_q)).sum()
            total = total - own[place].log_softmax(-1)[target[place]]
            tokens += 1
    assert tokens == batch.num_rows > len(TEXTS)
    expected = total / tokens
    output = rows(student, data, batch)
    soft = KD(temperature=2.0)(output, rows(teacher, data, batch), batch)
    value = soft + CrossEntropy()(output, None, batch)
    torch.testing.assert_close(value, expected)
    parameters = list(student.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for actual, gradient in zip(
        torch.autograd.grad(value, parameters), wanted, strict=True
    ):
        torch.testing.assert_close(actual, gradient)


@pytest.mark.parametrize("packed", [True, False])
def test_garbage_in_the_padding_changes_nothing(packed: bool, tmp_path: Path) -> None:
    data = corpus(tmp_path, packed)
    student = network(data, 0)
    batch = batch_of(data)
    value = CrossEntropy()(rows(student, data, batch), None, batch)
    assert isinstance(batch.inputs, dict)
    padding = ~batch.inputs["attention_mask"].bool()
    assert bool(padding.any())
    ids = batch.inputs["input_ids"]
    garbage = torch.randint(1, data.spec.num_classes, ids.shape)
    batch.inputs["input_ids"] = torch.where(padding, garbage, ids)
    batch.target = torch.where(padding, garbage, batch.target)
    other = CrossEntropy()(rows(student, data, batch), None, batch)
    torch.testing.assert_close(other, value)
