"""The datamodule of text: splits, fingerprints, the token cache, checkpoints and misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import BytePairTokenizer
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN
from tests.data.corpus.texts import corpus, write_corpus

pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_splits_and_spec(root: Path) -> None:
    data = corpus(root)
    spec = data.spec
    assert spec.task == "language modelling"
    assert spec.num_classes == 300
    assert spec.target_shape == (8,)
    assert spec.vocabulary is not None
    assert spec.vocabulary.size == 300
    for stage in ("train", "validation", "test"):
        source = data.source(stage)
        assert source.split == stage
        assert spec.samples[stage] == len(source) > 0
    batch = data.source("train").batch(torch.tensor([1, 0]), CLEAN)
    assert isinstance(batch.inputs, dict)
    assert set(batch.inputs) == {"input_ids", "documents", "position_ids"}
    assert batch.target.shape == (2, 8)
    assert batch.index.tolist() == [1, 0]
    assert torch.equal(batch.target, data.source("train").target[batch.index])


def test_a_share_of_the_training_blocks_is_held_out(root: Path) -> None:
    data = corpus(root, validation=0.25, fraction=0.5)
    total = len(data.blocks("train"))
    held_out = set(data.source("validation").rows.tolist())
    train = set(data.source("train").rows.tolist())
    assert len(held_out) == round(0.25 * total) or abs(len(held_out) - total / 4) < 1
    assert not held_out & train
    assert abs(len(train) - 0.5 * (total - len(held_out))) <= 1
    assert data.source("validation").split == "train"
    # The validation blocks do not depend on how many blocks are trained on.
    whole = corpus(root, validation=0.25)
    assert set(whole.source("validation").rows.tolist()) == held_out


def test_unpacked_blocks_need_no_documents(root: Path) -> None:
    data = corpus(root, packed=False)
    batch = data.source("train").batch(torch.arange(4), CLEAN)
    assert isinstance(batch.inputs, dict)
    assert set(batch.inputs) == {"input_ids"}
    assert data.spec.inputs is not None
    assert set(data.spec.inputs) == {"input_ids"}


def test_tokens_are_cached_by_content(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "tokens")
    first = corpus(root, cache=cache)
    fingerprint = first.fingerprint()
    ids = first.tokens("train").ids.tolist()
    # Each split once.
    assert capsys.readouterr().out.count("tokenizing") == 3
    again = corpus(root, cache=cache)
    assert again.tokens("train").ids.tolist() == ids
    assert "tokenizing" not in capsys.readouterr().out
    # A copy elsewhere has the same content, another tokenizer reads it anew.
    moved = corpus(write_corpus(tmp_path / "copy"), cache=cache)
    assert moved.fingerprint() == fingerprint
    assert "tokenizing" not in capsys.readouterr().out
    other = corpus(root, cache=cache, tokenizer=BytePairTokenizer(280))
    assert other.fingerprint() != fingerprint
    assert "tokenizing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [{"length": 7}, {"packed": False}, {"boundaries": "ignore"}]
)
def test_what_a_teacher_reads_is_part_of_the_fingerprint(
    root: Path, options: dict[str, Any]
) -> None:
    assert corpus(root, **options).fingerprint() != corpus(root).fingerprint()


def test_batch_sizes_and_subsets_are_not(root: Path) -> None:
    other = corpus(root, batch_size=2, fraction=0.5, split_seed=3)
    assert other.fingerprint() == corpus(root).fingerprint()


def test_a_damaged_cache_is_made_again(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "tokens"
    ids = corpus(root, cache=str(cache)).tokens("train").ids.tolist()
    for file in cache.rglob("starts.npy"):
        file.write_bytes(b"")
    assert corpus(root, cache=str(cache)).tokens("train").ids.tolist() == ids


def test_a_checkpoint_restores_the_tokens_without_the_files(
    root: Path, tmp_path: Path
) -> None:
    data = corpus(root)
    state = data.checkpoint_state()
    assert state is not None
    elsewhere = corpus(tmp_path / "nothing")
    elsewhere.restore(state, data.spec)
    assert elsewhere.spec == data.spec
    absolute = corpus(tmp_path, train=str(tmp_path / "gone" / "*.txt"))
    absolute.restore(state, data.spec)
    assert absolute.spec == data.spec
    assert elsewhere.tokenizer.fingerprint() == data.tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "data.length must be at least 2 tokens, got 1"),
        ({"validation": 1.0}, "data.validation must be files or a fraction"),
        ({"boundaries": "none"}, "data.boundaries must be reset or ignore"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"fraction": 0.0}, "data.fraction"),
    ],
)
def test_options_out_of_range(
    root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        corpus(root, **options)


def test_files_that_are_missing_or_empty(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.test: .*none names no file"):
        corpus(root, test="none").source("test")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(UserError, match=r"the corpus holds no text: .*empty.txt"):
        corpus(root, test=str(empty)).source("test")
