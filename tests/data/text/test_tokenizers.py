"""Tokenizers: vocabularies, truncation, padding and fingerprints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kd_lightning.data import (
    PretrainedTokenizer,
    SubwordTokenizer,
    Tokenizer,
    WordTokenizer,
)
from kd_lightning.data.text.words import MASK
from kd_lightning.errors import UserError
from tests.sentences import lines, save_bert, write_sst2

TEXTS = [(line.partition("\t")[0],) for line in lines(60)]


def trained(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.learn(TEXTS)
    return tokenizer


def spelled(tokenizer: Tokenizer, *sample: str) -> list[str]:
    """The tokens of a sample as strings."""
    names = {number: token for token, number in tokenizer.vocabulary.items()}
    return [names[number] for number in tokenizer.encode([sample]).ids.tolist()]


def test_words_are_sorted_by_count_then_alphabet() -> None:
    tokenizer = WordTokenizer(min_count=2)
    tokenizer.learn([("b a c", "a d"), ("b", "c once")])
    assert list(tokenizer.vocabulary) == ["[PAD]", "[UNK]", "[SEP]", "a", "b", "c"]
    assert list(tokenizer.vocabulary.values()) == list(range(6))
    assert tokenizer.encode([("A never c",)]).ids.tolist() == [3, 1, 5]
    assert tokenizer.encode([(f"a {MASK}",)]).ids.tolist() == [3, 1]
    assert tokenizer.encode([("a", "b")]).ids.tolist() == [3, 2, 4]
    assert tokenizer.encode([(" ",)]).ids.tolist() == [1]


def test_pieces_and_special_tokens() -> None:
    tokenizer = trained(SubwordTokenizer(300))
    pieces = spelled(tokenizer, f"The film {MASK} unseen")
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    assert "".join(pieces[1:-1]).replace("Ġ", " ") == " the film[MASK] unseen"
    assert len(pieces) > 6  # an unknown word becomes several pieces
    tokens = tokenizer.encode([("film", "story")])
    assert spelled(tokenizer, "film", "story").count("[SEP]") == 2
    assert tokens.types is not None
    assert tokens.types.tolist() == sorted(tokens.types.tolist())
    assert set(tokens.types.tolist()) == {0, 1}


@pytest.mark.parametrize("make", [WordTokenizer, SubwordTokenizer])
def test_longer_samples_are_truncated_and_counted(make: type[Tokenizer]) -> None:
    whole, short = trained(make(max_length=100)), trained(make(max_length=6))
    texts = [
        ("the film .",),
        ("the film is n't long , but dull",),
        ("the plot is cold and the cast is warm",),
    ]
    tokens = short.encode(texts)
    assert tokens.cut == 2
    assert whole.encode(texts).cut == 0
    assert tokens.lengths.tolist() == [whole.encode(texts[:1]).lengths.item(), 6, 6]
    if make is SubwordTokenizer:
        assert spelled(short, *texts[1])[-1] == "[SEP]"


def test_a_batch_is_padded_to_its_longest_sample() -> None:
    tokenizer = trained(SubwordTokenizer(300))
    texts = [("the film is n't long",), ("dull",), ("warm and cold",)]
    tokens = tokenizer.encode(texts)
    lengths = tokens.lengths.tolist()
    assert len(set(lengths)) == 3
    found = tokens.inputs(torch.tensor([2, 1]))
    width = max(lengths[1:])
    assert {
        name: (tensor.dtype, tensor.shape) for name, tensor in found.items()
    } == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (torch.int64, (2, width))
    )
    assert found["attention_mask"].sum(1).tolist() == [lengths[2], lengths[1]]
    for row, at in enumerate((2, 1)):
        alone = tokens.inputs(torch.tensor([at]))["input_ids"][0]
        assert found["input_ids"][row].tolist() == [
            *alone.tolist(),
            *[tokenizer.pad] * (width - lengths[at]),
        ]


def test_learning_is_deterministic() -> None:
    """Caches and checkpoints need one order of pieces; WordPiece gives another at each call."""
    for make in (lambda: SubwordTokenizer(400), WordTokenizer):
        assert len({trained(make()).describe().sha256 for _ in range(4)}) == 1


def test_a_pretrained_tokenizer_equals_the_saved_one(tmp_path: Path) -> None:
    root = write_sst2(tmp_path / "data")
    folder = save_bert(tmp_path / "bert", root)
    own, loaded = (
        trained(SubwordTokenizer(300, max_length=64)),
        PretrainedTokenizer(str(folder)),
    )
    assert (
        loaded.describe() == own.describe()
    )  # including the limit of 64 from the folder
    texts = [("the film is n't dull",), (f"{MASK} {'cold ' * 200}",)]
    first, second = own.encode(texts), loaded.encode(texts)
    assert torch.equal(first.ids, second.ids)
    assert loaded.typed
    assert second.cut == 1


def test_fingerprints_cover_arguments_and_classes() -> None:
    same = [trained(WordTokenizer()).fingerprint() for _ in range(2)]
    assert same[0] == same[1]
    others = [
        WordTokenizer(min_count=3),
        WordTokenizer(max_length=9),
        SubwordTokenizer(300),
        SubwordTokenizer(320),
    ]
    found = [trained(tokenizer).fingerprint() for tokenizer in others]
    assert all(a != b for at, a in enumerate(found) for b in [same[0], *found[:at]])


def test_the_folder_of_a_pretrained_tokenizer_does_not_matter(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert", write_sst2(tmp_path / "data"))
    shutil.copytree(folder, tmp_path / "copy")
    found = [
        PretrainedTokenizer(str(at)).fingerprint() for at in (folder, tmp_path / "copy")
    ]
    assert found[0] == found[1]
    assert PretrainedTokenizer(str(folder), max_length=16).fingerprint() != found[0]
    path = tmp_path / "copy" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = None  # same vocabulary, different pieces
    path.write_text(json.dumps(content))
    assert PretrainedTokenizer(str(tmp_path / "copy")).fingerprint() != found[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: WordTokenizer(min_count=0),
            "WordTokenizer: min_count must be at least 1, got 0",
        ),
        (
            lambda: WordTokenizer(max_length=3),
            "WordTokenizer: max_length must be at least 4, got 3",
        ),
        (
            lambda: SubwordTokenizer(10),
            "SubwordTokenizer: size must be at least 300, got 10",
        ),
        (
            lambda: PretrainedTokenizer("/no/such/folder").vocabulary,
            "there is no folder /no/such/folder",
        ),
    ],
)
def test_bad_arguments(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=words):
        make()
