"""Tokenizers of language models: no token is added, no byte is lost, and checkpoints restore them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.data import BytePairTokenizer, PretrainedLanguageTokenizer
from kd_lightning.data.corpus.documents import Document
from kd_lightning.errors import UserError
from kd_lightning.hub import library
from tests.data.corpus.texts import SENTENCES

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

DOCUMENTS = [Document(text) for text in SENTENCES]
UNSEEN = "Ünïcode — “quotes” 😀\t\n tail  "


def learned(size: int = 300) -> BytePairTokenizer:
    tokenizer = BytePairTokenizer(size)
    tokenizer.learn(DOCUMENTS)
    return tokenizer


def save_pretrained(folder: Path, **special: str) -> Path:
    """A folder with the tokenizer of a language model."""
    transformers = library("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=learned().backend, **special
    )
    fast.save_pretrained(folder)
    return folder


def test_a_learned_vocabulary_encodes_every_text() -> None:
    tokenizer = learned()
    (ids,) = tokenizer.encode([UNSEEN])
    assert tokenizer.backend.decode(ids) == UNSEEN  # type: ignore[attr-defined,unused-ignore]
    assert tokenizer.size == 300
    assert tokenizer.end not in ids
    assert tokenizer.encode([""]) == [[]]


def test_a_completion_continues_the_text_of_its_prompt() -> None:
    tokenizer = learned()
    for prompt, completion in (("The cat", " sat"), ("“no", "!” 😀"), ("tail  ", "")):
        first, second = tokenizer.encode([prompt, completion])
        decoded = tokenizer.decode_after(first, [*second, tokenizer.end])
        assert decoded == completion


def test_no_space_is_lost_between_prompt_and_completion() -> None:
    """SentencePiece's decoder drops the space at the start of a text."""
    tokenizers = library("tokenizers")
    vocabulary = {"<unk>": 0, "\u2581the": 1, "\u2581cat": 2, "s": 3}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>")
    )
    backend.decoder = tokenizers.decoders.Metaspace()
    tokenizer = BytePairTokenizer()
    tokenizer.restore({"backend": backend.to_str(), "end": 0})
    assert tokenizer.decode_after([1], [2, 3]) == " cats"
    assert tokenizer.decode_after([1, 2], [3]) == "s"


def test_the_bytes_of_tokens_add_up_to_those_of_the_text() -> None:
    tokenizer = learned()
    counts = tokenizer.token_bytes()
    for text in [*SENTENCES, UNSEEN]:
        (ids,) = tokenizer.encode([text])
        assert int(counts[ids].sum()) == len(text.encode())
    assert counts[tokenizer.end] == 0


def test_the_bytes_of_sentencepiece_tokens() -> None:
    tokenizers = library("tokenizers")
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "\u2581the": 2, "é": 3}
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>")
    )
    backend.add_special_tokens(["<unk>"])
    tokenizer = learned()
    tokenizer.restore({"backend": backend.to_str(), "end": 0})
    # A byte, a space and three letters, and a letter of two bytes.
    assert tokenizer.token_bytes().tolist() == [0, 1, 4, 2]


def test_learning_is_a_function_of_the_documents() -> None:
    first = learned()
    second = learned()
    assert first.fingerprint() == second.fingerprint()
    other = BytePairTokenizer(300)
    other.learn(DOCUMENTS[:2])
    assert other.fingerprint() != first.fingerprint()


def test_a_checkpoint_restores_the_tokenizer() -> None:
    tokenizer = learned()
    restored = BytePairTokenizer(300)
    restored.restore(tokenizer.keep())
    restored.learn([])
    assert restored.encode([UNSEEN]) == tokenizer.encode([UNSEEN])
    assert restored.fingerprint() == tokenizer.fingerprint()


def test_a_pretrained_tokenizer(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path / "model", eos_token="<|endoftext|>")
    tokenizer = PretrainedLanguageTokenizer(str(folder))
    tokenizer.learn([])
    expected = learned()
    assert tokenizer.encode([UNSEEN]) == expected.encode([UNSEEN])
    assert tokenizer.end == expected.end
    assert tokenizer.sha256() == expected.sha256()


def test_bad_arguments_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="size must be at least 257, got 256"):
        BytePairTokenizer(256)
    nowhere = PretrainedLanguageTokenizer(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        nowhere.learn([])
    endless = PretrainedLanguageTokenizer(str(save_pretrained(tmp_path / "endless")))
    with pytest.raises(UserError, match="no token that ends a document"):
        endless.learn([])


def test_a_gguf_file_without_its_packages_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_lightning.hub.find_spec", lambda name: None)
    tokenizer = PretrainedLanguageTokenizer(str(tmp_path), gguf_file="a.gguf")
    with pytest.raises(UserError, match=r"a.gguf needs the package gguf; pip install"):
        tokenizer.learn([])
