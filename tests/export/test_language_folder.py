"""`kd export --format transformers` of a language model: transformers alone predicts the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import BytePairTokenizer
from kd_lightning.data.corpus.documents import Document
from kd_lightning.export.language_folder import write_tokenizer
from kd_lightning.export.student import load_student
from kd_lightning.models import CausalLanguageModel
from tests.data.corpus.texts import SENTENCES, write_corpus
from tests.runs import Kd, environment

transformers = pytest.importorskip(
    "transformers", reason="pip install 'kd_lightning[text]'"
)

TEXTS = [
    *SENTENCES,
    " two  spaces, a tab\t and\n\nlines ",
    "<|endoftext|>",
    "日本語 🙂",
    "",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    # More than the tokenizer has.
    "vocab_size": 320,
}


def test_the_written_tokenizer_gives_equal_ids(tmp_path: Path) -> None:
    tokenizer = BytePairTokenizer(300)
    tokenizer.learn(Document(text) for text in SENTENCES)

    write_tokenizer(tokenizer, 16, tmp_path)

    assert (tmp_path / "tokenizer.json").is_file()
    assert (tmp_path / "tokenizer_config.json").is_file()
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == tokenizer.size
    assert loaded.eos_token_id == loaded.pad_token_id == tokenizer.end
    assert loaded.model_max_length == 16
    expected = tokenizer.encode(TEXTS)
    for text, ids in zip(TEXTS, expected, strict=True):
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text
    padded = loaded(TEXTS[:2], padding=True)
    assert len(set(map(len, padded["input_ids"]))) == 1


def test_a_folder_for_transformers_alone(kd: Kd, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "data")
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/books.yaml"),
        *("-c", "configs/teachers/books_llama.yaml", "--trainer.max_epochs=1"),
        *(f"--data.root={root}", f"--data.cache={root / 'cache'}"),
        *("--data.train=train", "--data.validation=validation", "--data.test=test"),
        *("--data.tokenizer.size=300", "--data.length=16", "--data.batch_size=4"),
        *(f"--model.network.architecture.{key}={SIZES[key]}" for key in SIZES),
        "--run.dir=language",
    )
    assert trained.code == 0, trained.err

    outcome = kd("export", "language", "--format", "transformers", "--output", "folder")

    assert outcome.code == 0, outcome.err
    content = json.loads((Path("folder") / "student.json").read_text())
    assert content["check"]["largest_difference"] <= 1e-5
    assert content["check"]["samples"] > 10
    assert "library_name: transformers" in (Path("folder") / "README.md").read_text()

    # A text in, through nothing of ours.
    tokenizer = transformers.AutoTokenizer.from_pretrained("folder")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained("folder")
    inputs = tokenizer(SENTENCES[0][:20], return_tensors="pt")
    student = load_student("language", [])
    with torch.no_grad():
        logits = model(**inputs).logits
        expected = student.module.net(inputs["input_ids"])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    # Tokens that no text has are not generated.
    assert model.config.vocab_size == len(tokenizer) == 300
    again = CausalLanguageModel(
        pretrained="./folder", num_classes=300, spec=student.spec.to_dict()
    )
    assert torch.equal(again(inputs["input_ids"]), logits)

    completed = subprocess.run(
        [sys.executable, "-I", str(Path("folder") / "example.py")],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=None),
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("Your own text.")
