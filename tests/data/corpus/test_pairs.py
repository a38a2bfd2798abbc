"""Prompts and completions: what the encoder and the decoder read, what is predicted, and misuse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import BytePairTokenizer, PromptCompletionDataModule
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN

pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")

PAIRS = [("one", "eins"), ("two words", "zwei"), ("3", "drei und mehr")]


def pairs(
    root: Path, content: Sequence[tuple[str, str]] = PAIRS, **options: Any
) -> PromptCompletionDataModule:
    lines = []
    for prompt, completion in content:
        lines.append(json.dumps({"prompt": prompt, "completion": completion}))
    (root / "all.jsonl").write_text("\n".join(lines))
    arguments: dict[str, Any] = {
        "root": str(root),
        "train": "all.jsonl",
        "validation": 0.0,
        "test": "all.jsonl",
        # No pair of bytes is merged: a token is a byte.
        "tokenizer": BytePairTokenizer(257),
        "prompt_length": 12,
        "length": 16,
        "cache": str(root / "cache"),
    }
    return PromptCompletionDataModule(**{**arguments, **options})


def test_a_batch_by_hand(tmp_path: Path) -> None:
    data = pairs(tmp_path)
    batch = data.source("train").batch(torch.tensor([2, 0]), CLEAN)
    assert batch.index.tolist() == [2, 0]
    assert isinstance(batch.inputs, Mapping)
    end = data.tokenizer.end
    for row, (prompt, completion) in enumerate((PAIRS[2], PAIRS[0])):
        prompt_ids, ids = data.tokenizer.encode([prompt, completion])
        padding = [end] * (12 - len(prompt_ids))
        assert batch.inputs["input_ids"][row].tolist() == prompt_ids + padding
        # The token that ends the prompt is read, what follows it is not.
        mask = batch.inputs["attention_mask"][row]
        assert mask.tolist() == [1] * (len(prompt_ids) + 1) + [0] * (len(padding) - 1)
        target = ids + [end] * (16 - len(ids))
        assert batch.target[row].tolist() == target
        decoder = batch.inputs["decoder_input_ids"][row]
        assert decoder.tolist() == [end, *target[:-1]]
    # Each completion and the token that ends it, though padding has the same id.
    lengths = [len(PAIRS[2][1]) + 1, len(PAIRS[0][1]) + 1]
    assert batch.positions is not None
    assert batch.positions.tolist() == [*range(lengths[0]), *range(16, 16 + lengths[1])]
    assert torch.equal(data.source("train").target[batch.index], batch.target)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    data = pairs(tmp_path, [("a" * 30, "b" * 30)])
    batch = data.source("train").batch(torch.tensor([0]), CLEAN)
    assert isinstance(batch.inputs, Mapping)
    end = data.tokenizer.end
    prompt = batch.inputs["input_ids"][0].tolist()
    assert len(set(prompt[:11])) == 1
    assert prompt[11] == end
    assert bool(batch.inputs["attention_mask"].all())
    # The completion goes on, so its end is no target.
    assert batch.num_rows == 16
    assert end not in batch.labels.tolist()


def test_spec_and_fingerprint(tmp_path: Path) -> None:
    data = pairs(tmp_path)
    spec = data.spec
    assert spec.task == "sequence-to-sequence modelling"
    assert spec.target_shape == (16,)
    assert spec.vocabulary is not None
    assert spec.vocabulary.max_length == 16
    assert spec.samples == {"train": 3, "validation": 0, "test": 3}
    assert spec.inputs is not None
    batch = data.source("train").batch(torch.arange(3), CLEAN)
    assert isinstance(batch.inputs, Mapping)
    for name, tensor in batch.inputs.items():
        assert tensor.shape == (3, *spec.inputs[name].shape)
    assert pairs(tmp_path).fingerprint() == data.fingerprint()
    shorter_prompts = pairs(tmp_path, prompt_length=8)
    shorter_texts = pairs(tmp_path, length=8)
    assert shorter_prompts.fingerprint() != data.fingerprint()
    assert shorter_texts.fingerprint() != data.fingerprint()
    state = data.checkpoint_state()
    assert state is not None
    elsewhere = pairs(tmp_path, train="gone.jsonl")
    elsewhere.restore(state, spec)
    assert elsewhere.spec == spec


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt_length must be at least 2 tokens"):
        pairs(tmp_path, prompt_length=1)
    with pytest.raises(UserError, match=r"data.train: text 2 has no prompt") as caught:
        pairs(tmp_path, [("a", "b"), ("", "c")]).source("train")
    assert "\n" not in str(caught.value)
