"""Masked tokens: how many, what replaces them, and of which numbers the masks are a function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import BytePairTokenizer, MaskedTokens, TextCorpusDataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN, Batch
from tests.data.corpus.texts import corpus, write_corpus

pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), repeats=40)


def masked(root: Path, seed: int | None = 0, **options: Any) -> TextCorpusDataModule:
    arguments: dict[str, Any] = {
        "tokenizer": BytePairTokenizer(300, mask=True),
        "prediction": MaskedTokens(seed=seed),
        "length": 32,
    }
    return corpus(root, **{**arguments, **options})


def batch_of(data: TextCorpusDataModule, stage: str, view: int) -> Batch:
    source = data.source(stage)
    return source.batch(torch.arange(len(source)), view)


def inputs_of(batch: Batch) -> Mapping[str, Tensor]:
    assert isinstance(batch.inputs, Mapping)
    return batch.inputs


def chosen(batch: Batch) -> Tensor:
    """Whether each place is predicted, bool `(B, L)`."""
    flat = torch.zeros(batch.target.numel(), dtype=torch.bool)
    assert batch.positions is not None
    flat[batch.positions] = True
    return flat.view(batch.target.shape)


def test_fifteen_percent_of_each_block_are_rows(root: Path) -> None:
    data = masked(root)
    batch = batch_of(data, "train", 3)
    inputs = inputs_of(batch)
    special = torch.tensor([data.tokenizer.end, data.tokenizer.mask])
    real = inputs["attention_mask"].bool() & ~torch.isin(batch.target, special)
    for row, count in enumerate(chosen(batch).sum(1).tolist()):
        assert count == max(1, round(0.15 * int(real[row].sum())))
    assert not bool((chosen(batch) & ~real).any())
    assert batch.num_rows == int(chosen(batch).sum())


def test_what_replaces_the_tokens(root: Path) -> None:
    data = masked(root, length=8)
    replaced = {"mask": 0, "same": 0, "other": 0}
    others = set()
    for view in range(40):
        batch = batch_of(data, "train", view)
        ids = inputs_of(batch)["input_ids"]
        is_chosen = chosen(batch)
        # Nothing else changes.
        assert torch.equal(ids[~is_chosen], batch.target[~is_chosen])
        for seen, true in zip(
            ids[is_chosen].tolist(), batch.target[is_chosen].tolist(), strict=True
        ):
            if seen == data.tokenizer.mask:
                replaced["mask"] += 1
            elif seen == true:
                replaced["same"] += 1
            else:
                replaced["other"] += 1
                others.add(seen)
    total = sum(replaced.values())
    assert total > 10_000
    assert replaced["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert replaced["same"] / total == pytest.approx(0.1, abs=0.02)
    assert replaced["other"] / total == pytest.approx(0.1, abs=0.02)
    # Random tokens come from the whole vocabulary.
    assert len(others) > 250


def test_masks_are_a_function_of_seed_view_and_block(root: Path) -> None:
    first = masked(root, seed=1)
    whole = inputs_of(batch_of(first, "train", 5))["input_ids"]
    # Alone, in another order, and from another object: the same masks.
    rows = torch.tensor([4, 0, 2])
    part = masked(root, seed=1).source("train").batch(rows, 5)
    assert torch.equal(inputs_of(part)["input_ids"], whole[rows])
    assert torch.equal(chosen(part), chosen(batch_of(first, "train", 5))[rows])
    subset = masked(root, seed=1, fraction=0.5)
    batch = batch_of(subset, "train", 5)
    assert torch.equal(inputs_of(batch)["input_ids"], whole[batch.index])
    for other in (
        batch_of(first, "train", 6),
        batch_of(masked(root, seed=2), "train", 5),
    ):
        assert not torch.equal(chosen(other), chosen(batch_of(first, "train", 5)))


def test_evaluation_masks_are_the_same_for_all_seeds(root: Path) -> None:
    first = inputs_of(batch_of(masked(root, seed=1), "test", CLEAN))
    second = inputs_of(batch_of(masked(root, seed=2), "test", CLEAN))
    assert torch.equal(first["input_ids"], second["input_ids"])


def test_the_seed_of_the_run_is_the_default(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    own = inputs_of(batch_of(masked(root, seed=None), "train", 0))
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    same = inputs_of(batch_of(masked(root, seed=7), "train", 0))
    assert torch.equal(own["input_ids"], same["input_ids"])


def views(loader: BatchLoader, epochs: int) -> list[int]:
    shown = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        (view,) = {batch.view for batch in loader}
        assert isinstance(view, int)
        shown.append(view)
    return shown


def test_every_epoch_has_new_masks_unless_their_number_is_fixed(root: Path) -> None:
    assert views(masked(root).train_dataloader(), 3) == [0, 1, 2]
    assert views(masked(root, views=2).train_dataloader(), 3) == [0, 1, 0]
    evaluation = masked(root).test_dataloader()
    assert views(evaluation, 2) == [CLEAN, CLEAN]
    # The next token is the same in all views.
    assert views(corpus(root).train_dataloader(), 2) == [CLEAN, CLEAN]


@pytest.mark.parametrize("packed", [True, False])
def test_every_token_but_the_ends_can_be_predicted(root: Path, packed: bool) -> None:
    """Over many views, all of them are predicted at some time, and no other place is."""
    data = masked(root, length=8, packed=packed)
    seen = torch.zeros_like(batch_of(data, "test", 0).target, dtype=torch.bool)
    for view in range(100):
        seen |= chosen(batch_of(data, "test", view))
    batch = batch_of(data, "test", 0)
    exists = inputs_of(batch)["attention_mask"].bool()
    assert torch.equal(seen, exists & (batch.target != data.tokenizer.end))
    # Each token of the files is in one block.
    ids = torch.from_numpy(data.tokens("test").ids.astype("int64"))
    assert int(seen.sum()) == int((ids != data.tokenizer.end).sum())


def test_prompts_are_read_and_never_masked(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "aaaaaa", "completion": "bbbbbbbbbb"})] * 4
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    data = masked(
        tmp_path,
        train="all.jsonl",
        validation=0.0,
        test="all.jsonl",
        packed=False,
        tokenizer=BytePairTokenizer(258, mask=True),
    )
    data.learn()
    (prompt,) = data.tokenizer.encode(["a"])[0]
    for view in range(20):
        batch = batch_of(data, "train", view)
        assert batch.num_rows == 4 * round(0.15 * 10)
        assert prompt not in batch.labels.tolist()
        first = inputs_of(batch)["input_ids"][:, :6]
        assert bool((first == prompt).all())


def test_padding_has_no_attention_and_no_row(root: Path) -> None:
    data = masked(root, packed=False, length=256)
    batch = batch_of(data, "test", CLEAN)
    inputs = inputs_of(batch)
    assert set(inputs) == {"input_ids", "attention_mask"}
    padding = ~inputs["attention_mask"].bool()
    assert bool(padding.any())
    assert not bool((chosen(batch) & padding).any())
    assert bool((inputs["input_ids"][padding] == data.tokenizer.end).all())


def test_spec_and_fingerprint(root: Path) -> None:
    data = masked(root)
    assert data.spec.task == "masked language modelling"
    assert data.spec.inputs is not None
    assert set(data.spec.inputs) == set(inputs_of(batch_of(data, "train", 0)))
    assert masked(root).fingerprint() == data.fingerprint()
    for other in (
        masked(root, seed=1),
        masked(root, prediction=MaskedTokens(0.3, seed=0)),
        masked(root, prediction=None),
    ):
        assert other.fingerprint() != data.fingerprint()


def test_a_checkpoint_restores_the_mask_token(root: Path) -> None:
    data = masked(root)
    state = data.checkpoint_state()
    assert state is not None
    again = masked(root, tokenizer=BytePairTokenizer(300))
    again.restore(state, data.spec)
    assert again.tokenizer.mask == data.tokenizer.mask is not None
    assert again.fingerprint() == data.fingerprint()


def test_mistakes_are_one_line(root: Path) -> None:
    with pytest.raises(UserError, match=r"share must be in \(0, 1\), got 1"):
        MaskedTokens(share=1.0)
    with pytest.raises(UserError, match=r"data.views must be at least 1, got 0"):
        masked(root, views=0)
    with pytest.raises(UserError, match="the tokenizer has no mask token") as caught:
        masked(root, tokenizer=BytePairTokenizer(300)).source("train")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="size must be at least 258, got 257"):
        BytePairTokenizer(257, mask=True)
