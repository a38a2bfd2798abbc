"""Data sets of Hugging Face on disk as a corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.data.corpus.documents import Document, find_files, read_documents
from kd_lightning.errors import UserError
from tests.data.corpus.texts import SENTENCES, corpus, write_corpus


def save(rows: list[dict[str, Any]], folder: Path, shards: int = 1) -> None:
    """Write a data set of the package, or skip the test without it."""
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    table = datasets.table.InMemoryTable.from_pylist(rows)
    # With a fingerprint: the package would pickle its libraries to make one.
    data = datasets.Dataset(table, fingerprint="test")
    data.save_to_disk(folder, num_shards=shards)


def test_without_the_package_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert find_files(tmp_path, ["."], "data.train") == [tmp_path]
    message = r"needs the package datasets; pip install 'kd_lightning\[text\]'"
    with pytest.raises(UserError, match=message):
        list(read_documents(tmp_path))


def test_splits_must_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{}")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"\(test, train\); name one of them, such as"):
        list(read_documents(tmp_path))


def test_rows_are_documents(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": text, "id": 3} for text in SENTENCES]
    save(rows, tmp_path / "pairs")
    expected = [Document(text, prompt="Q") for text in SENTENCES]
    assert list(read_documents(tmp_path / "pairs")) == expected

    save([{"words": "a"}], tmp_path / "other")
    with pytest.raises(UserError, match=r"other, row 1 needs the field text"):
        list(read_documents(tmp_path / "other"))

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken cannot be read: ") as caught:
        list(read_documents(tmp_path / "broken"))
    assert "\n" not in str(caught.value)


def test_a_data_set_is_a_split_of_a_corpus(tmp_path: Path) -> None:
    root = write_corpus(tmp_path)
    rows = [{"text": text} for text in SENTENCES * 3]
    # Several files, whose names give the order.
    save(rows, root / "rows", shards=3)
    data = corpus(root, train="rows")
    expected: list[int] = []
    data.learn()
    for ids in data.tokenizer.encode([row["text"] for row in rows]):
        expected += [*ids, data.tokenizer.end]
    assert data.tokens("train").ids.tolist() == expected
    fingerprint = data.fingerprint()
    rows[-1]["text"] = "Another end."
    save(rows, root / "changed", shards=3)
    assert corpus(root, train="changed").fingerprint() != fingerprint
