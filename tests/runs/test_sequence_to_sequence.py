"""A sequence-to-sequence student learns from a live and from a cached teacher through `kd`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.runs import Kd

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def network(layers: int) -> dict[str, object]:
    architecture = {
        "model_type": "t5",
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": layers,
        "num_heads": 2,
    }
    return {
        "class_path": "kd_lightning.models.SequenceToSequenceModel",
        "init_args": {"architecture": architecture},
    }


def write(name: str, model: dict[str, object], module: str) -> list[str]:
    """A config of prompts that ask for a word in capitals, and of the networks."""
    lines = []
    for word in WORDS * 3:
        lines.append(json.dumps({"prompt": word, "completion": word.upper()}))
    Path("pairs.jsonl").write_text("\n".join(lines))
    data = {
        "root": ".",
        "train": "pairs.jsonl",
        "validation": "pairs.jsonl",
        "test": "pairs.jsonl",
        "cache": "tokens",
        "prompt_length": 8,
        "length": 8,
        "batch_size": 8,
        "tokenizer": {
            "class_path": "kd_lightning.data.BytePairTokenizer",
            "init_args": {"size": 257},
        },
    }
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    config = {
        "data": {
            "class_path": "kd_lightning.data.PromptCompletionDataModule",
            "init_args": data,
        },
        "model": {
            "class_path": f"kd_lightning.{module}",
            "init_args": {**model, "optimizer": optimizer},
        },
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return [
        *("-c", "configs/trainer.yaml", "-c", f"{name}.yaml"),
        *("-c", "configs/loggers/csv.yaml"),
        *("--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
    ]


def curve(run: str) -> list[dict[str, str]]:
    with (Path("runs") / run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_cached_teacher_gives_the_live_teachers_losses(kd: Kd) -> None:
    argv = write("teacher", {"network": network(2)}, "ClassifierModule")
    outcome = kd("fit", *argv, "--run.name=teacher")
    assert (outcome.code, outcome.err) == (0, "")
    teacher = {"class_path": "kd_lightning.teachers.ModelTeacher"}
    networks = {"student": network(1), "teacher": teacher}
    argv = [
        *write("pair", networks, "DistillationModule"),
        *("-c", "configs/methods/kd.yaml"),
    ]
    live = "--model.teacher.checkpoint=runs/teacher/checkpoints/last.ckpt"
    outcome = kd("fit", *argv, live, "--run.name=live", "--run.test=last")
    assert (outcome.code, outcome.err) == (0, "")
    assert kd("cache", *argv, live, "--output=cache").code == 0
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        "--model.teacher.path=cache",
    ]
    outcome = kd("fit", *argv, *cached, "--run.name=cached")
    assert (outcome.code, outcome.err) == (0, "")
    for live_row, cached_row in zip(curve("live"), curve("cached"), strict=True):
        for name in ("train_loss", "train_loss_kd", "val_nll", "val_bits_per_byte"):
            assert cached_row[name] == live_row[name], name
    losses = [float(row["train_loss"]) for row in curve("live")]
    assert losses[1] < losses[0]
