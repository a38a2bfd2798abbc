"""Small data in SST-2's format, and the saved folder of a small BERT with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import SST2DataModule, SubwordTokenizer

GOOD = ("funny", "moving", "brilliant", "charming", "warm")
BAD = ("dull", "boring", "awful", "clumsy", "cold")
THINGS = ("film", "story", "plot", "cast", "director 's debut")


def lines(count: int, start: int = 0) -> list[str]:
    """Lines `sentence<TAB>label` of different lengths, whose words reveal the class."""
    samples = []
    for at in range(start, start + count):
        label = at % 2
        word = (BAD, GOOD)[label][at % 5]
        more = ("and " + (BAD, GOOD)[label][(at + 1) % 5] + " ") * (at % 3)
        samples.append(
            f"the {THINGS[at // 2 % 5]} is n't long , but {word} {more}.\t{label}"
        )
    return samples


def write_sst2(root: Path, train: int = 60, dev: int = 12, test: int = 20) -> Path:
    """Write `SST2/{train,dev,test}.tsv` below `root`; returns `root`."""
    (root / "SST2").mkdir(parents=True)
    for name, count, start in (
        ("train", train, 0),
        ("dev", dev, 100),
        ("test", test, 200),
    ):
        (root / "SST2" / f"{name}.tsv").write_text(
            "\n".join(lines(count, start)) + "\n"
        )
    return root


def save_bert(folder: Path, root: Path, tokenizer: bool = True, **changes: Any) -> Path:
    """Save a BERT with random weights, and a tokenizer learned from the training sentences."""
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'kd_lightning[text]'"
    )
    transformers.logging.disable_progress_bar()
    data = SST2DataModule(str(root), tokenizer=SubwordTokenizer(300))
    assert data.spec.vocabulary is not None
    size = data.spec.vocabulary.size
    if tokenizer:
        names = {
            f"{name}_token": f"[{name.upper()}]"
            for name in ("pad", "unk", "cls", "sep", "mask")
        }
        backend = data.tokenizer.backend  # type: ignore[attr-defined]
        read = ["input_ids", "token_type_ids", "attention_mask"]
        saved = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=64,
            model_input_names=read,
            **names,
        )
        saved.save_pretrained(folder)
    small: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig(**small)).save_pretrained(folder)
    return folder
