"""Other completions for the prompts of a batch: what is read, and what is predicted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from kd_lightning.data import BytePairTokenizer, TextCorpusDataModule
from kd_lightning.data.corpus.completions import prompts_of, with_completions
from kd_lightning.types import CLEAN, UNLABELLED, Batch

pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")

PROMPTS = [("Q: one?", " Yes."), ("Q", " A longer answer, with words."), ("", "Hello")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextCorpusDataModule:
    """Prompts and completions of unequal lengths, one per block."""
    root = tmp_path_factory.mktemp("prompts")
    lines = []
    for prompt, completion in PROMPTS:
        lines.append(json.dumps({"prompt": prompt, "completion": completion}))
    (root / "all.jsonl").write_text("\n".join(lines))
    # No pair of bytes is merged: a token is a byte.
    return TextCorpusDataModule(
        root=str(root),
        train="all.jsonl",
        validation=0.0,
        test="all.jsonl",
        tokenizer=BytePairTokenizer(257),
        length=32,
        packed=False,
        cache=str(root / "cache"),
    )


def batch_of(data: TextCorpusDataModule) -> Batch:
    return data.source("train").batch(torch.arange(len(PROMPTS)), CLEAN)


def ids_of(batch: Batch) -> Any:
    assert isinstance(batch.inputs, dict)
    return batch.inputs["input_ids"]


def test_prompts_end_before_the_first_token_to_predict(
    data: TextCorpusDataModule,
) -> None:
    prompts = prompts_of(batch_of(data))
    texts = [data.tokenizer.decode_after([], ids.tolist()) for ids in prompts]
    # A text without a prompt begins with its first token, which nothing predicts.
    assert texts == ["Q: one?", "Q", "H"]


def test_prompts_of_some_length_end_before_the_end_of_the_text(
    data: TextCorpusDataModule,
) -> None:
    prompts = prompts_of(batch_of(data), shortest=9)
    texts = [data.tokenizer.decode_after([], ids.tolist()) for ids in prompts]
    assert texts == ["Q: one? Y", "Q A longe", "Hello"]
    prompts = prompts_of(batch_of(data), shortest=99)
    texts = [data.tokenizer.decode_after([], ids.tolist()) for ids in prompts]
    assert texts == [prompt + completion for prompt, completion in PROMPTS]


def test_every_token_of_a_full_block_counts() -> None:
    ids = torch.arange(1, 9).view(2, 4)
    batch = Batch({"input_ids": ids}, ids + 1, torch.arange(2))
    assert [prompt.tolist() for prompt in prompts_of(batch)] == [[1], [5]]
    assert [len(prompt) for prompt in prompts_of(batch, 9)] == [4, 4]


def test_the_datas_own_completions_give_the_batch_again(
    data: TextCorpusDataModule,
) -> None:
    batch = batch_of(data)
    prompts = prompts_of(batch)
    completions = []
    for prompt, (first, second) in zip(prompts, PROMPTS, strict=True):
        (ids,) = data.tokenizer.encode([first + second])
        completions.append(torch.tensor([*ids[len(prompt) :], data.tokenizer.end]))
    same = with_completions(batch, prompts, completions, data.tokenizer.end)
    assert torch.equal(ids_of(same), ids_of(batch))
    assert batch.positions is not None
    assert same.positions is not None
    assert torch.equal(same.positions, batch.positions)
    # Tokens of a student are no labels.
    assert same.labels.tolist() == [UNLABELLED] * batch.num_rows


def test_completions_of_any_length_fit(data: TextCorpusDataModule) -> None:
    batch = batch_of(data)
    prompts = prompts_of(batch)
    completions = [torch.full((26,), 7), torch.tensor([5]), torch.zeros(0).long()]
    other = with_completions(batch, prompts, completions, data.tokenizer.end)
    # The last of 33 tokens is a target alone.
    assert ids_of(other)[0].tolist() == [*prompts[0].tolist(), *[7] * 25]
    assert ids_of(other)[1].tolist() == [*prompts[1].tolist(), 5, *[0] * 30]
    assert other.positions is not None
    assert other.positions.tolist() == [*range(6, 32), 32]
