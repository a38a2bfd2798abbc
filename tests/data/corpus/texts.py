"""A small corpus, and a tokenizer whose tokens are the bytes of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd_lightning.data import BytePairTokenizer, TextCorpusDataModule

SENTENCES = [
    "The cat sat on the mat, and the dog sat on the log.",
    "A naïve café owner said: “no!”",
    "Rain fell for days; the river rose and rose.\nThen it stopped.",
    "She sells sea shells by the sea shore.",
]


def write_corpus(root: Path, repeats: int = 6) -> Path:
    """Folders train, validation and test, with a text file each and one of JSON lines."""
    for split in ("train", "validation", "test"):
        folder = root / split
        folder.mkdir(parents=True)
        count = repeats if split == "train" else 2
        (folder / "story.txt").write_text("\n".join(SENTENCES * count) + f"\n{split}.")
        lines = [json.dumps({"text": f"{split}: {text}"}) for text in SENTENCES]
        (folder / "notes.jsonl").write_text("\n".join(lines) + "\n")
    return root


def corpus(root: Path, **options: Any) -> TextCorpusDataModule:
    """The corpus below a folder, in blocks of eight tokens of a small vocabulary."""
    arguments: dict[str, Any] = {
        "root": str(root),
        "tokenizer": BytePairTokenizer(300),
        "length": 8,
        "batch_size": 4,
        "cache": str(root / "cache"),
    }
    return TextCorpusDataModule(**{**arguments, **options})
