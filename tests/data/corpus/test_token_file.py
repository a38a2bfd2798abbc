"""The token cache of large corpora: what is in memory while it is made and read."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_lightning.data import BytePairTokenizer
from kd_lightning.data.corpus import token_file
from kd_lightning.data.corpus.documents import Document
from kd_lightning.data.corpus.token_file import tokenized
from kd_lightning.types import CLEAN
from tests.data.corpus.texts import corpus

pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")


def grown_mb(root: str) -> float:
    """Tokenize a corpus and read a batch; the growth of this process's largest memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = corpus(Path(root), validation=0.0, test="train", length=256)
    source = data.source("train")
    source.batch(torch.arange(0, len(source), len(source) // 4), CLEAN)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_a_larger_corpus_needs_no_more_memory(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(1000, 9999, 400)
    line = json.dumps({"text": " ".join(map(str, words))}) + "\n"
    grown = []
    for megabytes in (1, 5):
        root = tmp_path / str(megabytes)
        folder = root / "train"
        folder.mkdir(parents=True)
        (folder / "all.jsonl").write_text(line * (megabytes * 2**20 // len(line)))
        # In a process of its own, which starts from the memory that this one has now.
        with multiprocessing.get_context("fork").Pool(1) as pool:
            grown.append(pool.apply(grown_mb, (str(root),)))
    # Neither the text of 5 MB nor its tokens, which take 10 MB.
    assert grown[1] - grown[0] < 4


def test_groups_are_limited_in_documents_and_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_file, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(token_file, "CHARACTERS_AT_ONCE", 10)
    lengths = [1, 1, 1, 1, 20, 4, 4, 4]
    documents = [Document("x" * length) for length in lengths]
    groups = []
    for group in token_file._groups(documents):
        groups.append([len(document.text) for document in group])
    assert groups == [[1, 1, 1], [1], [20], [4, 4], [4]]


def test_the_file_is_an_array_of_numpy(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    texts = ["one two", "three"]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = BytePairTokenizer(257)
    tokenizer.learn(Document(text) for text in texts)
    tokens = tokenized([file], tokenizer, str(tmp_path / "cache"))
    expected: list[int] = []
    for ids in tokenizer.encode(texts):
        expected += [*ids, tokenizer.end]
    assert tokens.ids.tolist() == expected
    assert tokens.ids.dtype == np.uint16
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.starts.tolist() == [0, 8]
