"""Readers that an export describes: the same again, and nothing that runs code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kd_lightning.data import BytePairTokenizer, WordTokenizer
from kd_lightning.data.corpus.documents import Document
from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.images.new_samples import ImageReader
from kd_lightning.data.new_samples import InputReader
from kd_lightning.data.reader_of import reader_of
from kd_lightning.data.tabular.features import (
    CategoricalFeature,
    FeatureEncoder,
    NumericFeature,
)
from kd_lightning.data.tabular.new_samples import RowReader
from kd_lightning.data.text.new_samples import TextReader
from kd_lightning.errors import UserError
from kd_lightning.values import Values


def stored(reader: InputReader) -> Values:
    """What an export's file holds."""
    content: Values = json.loads(json.dumps(reader.describe()))
    return content


@pytest.mark.parametrize(
    "reader",
    [
        ImageReader(channels=3, height=4, width=5, size=4),
        ImageReader(channels=1, height=4, width=5, stretch=True),
        RowReader(
            FeatureEncoder(
                (
                    NumericFeature("age", 40.0, 9.5, None),
                    CategoricalFeature("city", ("Bonn", "Ulm"), "Ulm", "zeros"),
                )
            )
        ),
    ],
)
def test_the_same_reader_comes_back(reader: InputReader) -> None:
    assert reader_of(stored(reader), "student.json") == reader


def test_prompts_get_the_same_ids() -> None:
    pytest.importorskip("tokenizers", reason="pip install 'kd_lightning[text]'")
    tokenizer = BytePairTokenizer(270)
    tokenizer.learn([Document("A dull film, and a warm film.")])
    reader = PromptReader(tokenizer)

    again = reader_of(stored(reader), "student.json")

    assert isinstance(again, PromptReader)
    text = "a warm — film"
    assert torch.equal(again.token_ids(text), reader.token_ids(text))
    assert again.tokenizer.end == tokenizer.end
    encoded = again.encode([(text,), (text,)])["input_ids"]
    assert torch.equal(encoded[1], reader.token_ids(text))
    with pytest.raises(UserError, match="differ in their lengths"):
        again.encode([("a",), (text,)])


def test_texts_get_the_same_ids_at_the_whole_length() -> None:
    tokenizer = WordTokenizer(max_length=6)
    tokenizer.learn([("a warm film",), ("a dull film",)])
    reader = TextReader(tokenizer, pairs=False)
    texts = [("a film",), ("unknown words are one token",)]

    again = reader_of(stored(reader), "student.json")

    expected = reader.encode(texts)
    inputs = again.encode(texts)
    assert isinstance(inputs, dict)
    assert inputs["input_ids"].shape == (2, 6)
    for name, tensor in expected.items():
        width = tensor.shape[1]
        assert torch.equal(inputs[name][:, :width], tensor)
        # The id of padding is 0, and a mask is 0 there.
        assert int(inputs[name][:, width:].abs().sum()) == 0


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"kind": "smells"}, "names an unknown reader 'smells'"),
        ({"kind": "images", "depth": 3}, "its reader of images is damaged"),
        ({"kind": "texts", "pairs": False}, "its reader of texts is damaged"),
        (
            {
                "kind": "texts",
                "pairs": False,
                "tokenizer": {"class_path": "evil.Tokenizer", "init_args": {}},
            },
            "would run code of 'evil'",
        ),
        (
            {
                "kind": "texts",
                "pairs": False,
                "tokenizer": {"class_path": "torch.nn.Linear", "init_args": {}},
            },
            "is not a Tokenizer class",
        ),
    ],
)
def test_damaged_descriptions_are_one_line(
    described: Values, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module that must not be imported only because a file names it.
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(UserError, match=message):
        reader_of(described, "student.json")
