"""Masked language models from text files to a student: caches replay the masks, and runs resume."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.tasks import MaskedLanguageModelling
from tests.data.corpus.texts import write_corpus
from tests.runs import Kd

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

TINY = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CSV = ["-c", "configs/loggers/csv.yaml"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a small corpus with masks."""
    root = write_corpus(tmp_path_factory.mktemp("corpus"), repeats=12)
    arguments = {
        "root": str(root),
        "cache": str(root / "cache"),
        "length": 32,
        "batch_size": 4,
        "tokenizer": {
            "class_path": "kd_lightning.data.BytePairTokenizer",
            "init_args": {"size": 300, "mask": True},
        },
        "prediction": {"class_path": "kd_lightning.data.MaskedTokens"},
    }
    config = {
        "data": {
            "class_path": "kd_lightning.data.TextCorpusDataModule",
            "init_args": arguments,
        }
    }
    path = root / "corpus.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def sizes(option: str, layers: int) -> list[str]:
    values = {**TINY, "num_hidden_layers": layers}
    return [f"--model.{option}.architecture.{key}={values[key]}" for key in values]


def common(data: Path) -> list[str]:
    quick = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    return ["-c", "configs/trainer.yaml", "-c", str(data), *CSV, *quick]


@pytest.fixture(scope="module")
def masked_teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny masked language model, trained for two epochs and tested."""
    argv = [
        "fit",
        *common(data),
        *("-c", "configs/teachers/masked_books_bert.yaml"),
        *sizes("network", 2),
        *("--run.name=teacher", "--run.test=last", "--model.optimizer.lr=0.005"),
        f"--run.root={tmp_path_factory.mktemp('runs')}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return launch(resolve_configs(argv)).folder


def pair(data: Path, method: str = "kd") -> list[str]:
    files = ["-c", "configs/pairs/bert6_bert2.yaml"]
    return [
        *common(data),
        *files,
        *("-c", f"configs/methods/{method}.yaml"),
        *sizes("student", 1),
    ]


def live(teacher: Path) -> str:
    return f"--model.teacher.checkpoint={teacher / 'checkpoints' / 'last.ckpt'}"


def curve(run: str | Path) -> list[dict[str, str]]:
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def test_a_teacher_learns_and_has_no_bits_per_byte(masked_teacher: Path) -> None:
    written = record(masked_teacher)
    assert written["status"] == "finished"
    assert written["task"] == MaskedLanguageModelling().describe()
    losses = [float(row["train_loss"]) for row in curve(masked_teacher)]
    assert losses[1] < losses[0] < math.log(300) + 0.5
    metrics = written["metrics"]
    for name in ("test_nll", "test_perplexity", "test_accuracy", "test_errors"):
        assert math.isfinite(metrics[name]), name
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_nll"]))
    assert not [name for name in metrics if "bits_per_byte" in name]


def test_a_cached_teacher_gives_the_live_teachers_losses(
    data: Path, masked_teacher: Path, kd: Kd
) -> None:
    """The cache replays the masks of each view, and those of validation."""
    argv = [*pair(data), "--data.views=2", "--trainer.max_epochs=3"]
    outcome = kd("fit", *argv, live(masked_teacher), "--run.name=live")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = kd("cache", *argv, live(masked_teacher), "--views=2", "--output=cache")
    assert (outcome.code, outcome.err) == (0, "")
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        "--model.teacher.path=cache",
    ]
    outcome = kd("fit", *argv, *cached, "--run.name=cached")
    assert (outcome.code, outcome.err) == (0, "")
    rows = zip(curve("runs/live"), curve("runs/cached"), strict=True)
    for live_row, cached_row in rows:
        for name in ("train_loss", "train_loss_ce", "train_loss_kd", "val_nll"):
            assert cached_row[name] == live_row[name], name
        assert 0 < float(cached_row["val_teacher_agreement"]) <= 1
    # A cache of other masks is no cache of these.
    outcome = kd("fit", *argv, *cached, "--data.prediction.seed=5", "--run.name=other")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "was made for other data" in outcome.err


def test_a_run_resumes_within_an_epoch(
    data: Path, masked_teacher: Path, kd: Kd
) -> None:
    argv = [
        *("fit", *pair(data), live(masked_teacher), "--run.name=whole"),
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=3",
        "--trainer.callbacks.save_top_k=-1",
    ]
    assert kd(*argv).code == 0
    folder = Path("runs/whole/checkpoints")
    expected = torch.load(folder / "last.ckpt", weights_only=True)
    # Within the second epoch, whose masks differ from those of the first.
    steps = []
    for path in folder.glob("epoch=1-step=*.ckpt"):
        steps.append(int(path.stem.rpartition("=")[2]))
    first = min(steps)
    assert expected["global_step"] / 2 < first < expected["global_step"]
    middle = folder / f"epoch=1-step={first}.ckpt"
    assert kd("fit", f"--ckpt_path={middle}").code == 0
    actual = torch.load(folder / "last.ckpt", weights_only=True)
    assert expected["state_dict"].keys() == actual["state_dict"].keys()
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, actual["state_dict"][name]), name


def test_misfits_are_one_line(data: Path, masked_teacher: Path, kd: Kd) -> None:
    argv = pair(data)
    for options, message in (
        (["--data.tokenizer.mask=false"], "no mask token"),
        (["--data.length=33"], "at most 32 tokens, but data.length is 33"),
        (
            ["--data.prediction=kd_lightning.data.NextToken"],
            "was trained for masked language modelling",
        ),
    ):
        outcome = kd("fit", *argv, live(masked_teacher), *options)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1, outcome.err
        assert message in outcome.err


def test_test_and_predict_need_no_option(masked_teacher: Path, kd: Kd) -> None:
    checkpoint = masked_teacher / "checkpoints" / "last.ckpt"
    outcome = kd("test", f"--ckpt_path={checkpoint}", "--run.root=runs")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = kd("predict", f"--ckpt_path={checkpoint}", "--run.root=runs")
    assert (outcome.code, outcome.err) == (0, "")
