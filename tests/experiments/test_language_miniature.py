"""The experiment on books as it is shipped, cut down to seconds, with a tiny pretrained teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kd_lightning.cli import main
from kd_lightning.data import BytePairTokenizer
from kd_lightning.data.corpus.documents import Document
from kd_lightning.hub import library
from kd_lightning.models import CausalLanguageModel
from tests.data.corpus.texts import SENTENCES, write_corpus

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

SIZE = 300


def save_language_model(folder: Path) -> Path:
    """A tiny language model with its tokenizer, as `save_pretrained` writes them."""
    tokenizer = BytePairTokenizer(SIZE)
    tokenizer.learn([Document(text) for text in SENTENCES])
    fast = library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = CausalLanguageModel(
        architecture={
            "model_type": "llama",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 256,
        },
        num_classes=SIZE,
    )
    model.model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_students_of_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "tokens"))
    write_corpus(tmp_path / "books", repeats=100)
    teacher = save_language_model(tmp_path / "tiny")
    argv = [
        *("reproduce", "language/books", "--quick", "--teacher", str(teacher)),
        *("--fraction", "0.5"),
        f"--data-root={tmp_path}",
        f"--output={tmp_path / 'output'}",
        f"--store={tmp_path / 'store'}",
    ]
    assert main(argv) == 0
    content = json.loads((tmp_path / "output" / "results.json").read_text())
    rows = {(row["run"], row["metric"]): row["values"] for row in content["rows"]}
    runs = {run for run, _ in rows}
    cells = {
        f"distilled top_k={top_k} rest={rest}"
        for top_k in (8, 32, 128)
        for rest in ("cell", "none")
    }
    assert runs == {"student-alone", "skew KL", "skew reverse KL", *cells}
    for run in runs:
        [bits] = rows[run, "test_bits_per_byte"]
        assert 0 < bits < 20
