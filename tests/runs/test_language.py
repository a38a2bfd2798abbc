"""Language models from text files to a student: the same losses and modules as for images."""

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
from kd_lightning.tasks import LanguageModelling
from tests.data.corpus.texts import write_corpus
from tests.runs import Kd

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "-c",
    "configs/loggers/csv.yaml",
]
TINY_TEACHER = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
TINY_STUDENT = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
STUDENT_RUN = Path("runs/student")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a small corpus, and small networks."""
    root = write_corpus(tmp_path_factory.mktemp("corpus"), repeats=12)
    arguments = {
        "root": str(root),
        "cache": str(root / "cache"),
        "length": 16,
        "batch_size": 4,
        "tokenizer": {
            "class_path": "kd_lightning.data.BytePairTokenizer",
            "init_args": {"size": 300},
        },
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


def sizes(option: str, architecture: dict[str, int]) -> list[str]:
    values = {**architecture, "num_attention_heads": 2, "num_key_value_heads": 2}
    return [f"--model.{option}.architecture.{key}={values[key]}" for key in values]


def common(data: Path) -> list[str]:
    return ["-c", "configs/trainer.yaml", "-c", str(data), *SMALL]


@pytest.fixture(scope="module")
def language_teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny language model, trained for two epochs and tested."""
    argv = [
        "fit",
        *common(data),
        *("-c", "configs/teachers/books_llama.yaml"),
        *sizes("network", TINY_TEACHER),
        *("--run.name=teacher", "--run.test=last"),
        f"--run.root={tmp_path_factory.mktemp('runs')}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return launch(resolve_configs(argv)).folder


def pair(data: Path, method: str) -> list[str]:
    return [
        *common(data),
        *("-c", "configs/pairs/llama6_llama2.yaml"),
        *("-c", f"configs/methods/{method}.yaml"),
        *sizes("student", TINY_STUDENT),
        *("--model.losses.kd.temperature=2" if method == "kd" else "").split(),
    ]


def live(teacher: Path) -> str:
    return f"--model.teacher.checkpoint={teacher / 'checkpoints' / 'last.ckpt'}"


def curve(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def test_a_teacher_learns_and_is_measured_in_bits_per_byte(
    language_teacher: Path,
) -> None:
    written = record(language_teacher)
    assert written["status"] == "finished"
    assert written["task"] == LanguageModelling().describe()
    losses = [float(row["train_loss"]) for row in curve(language_teacher)]
    assert losses[1] < losses[0] < math.log(300) + 0.5
    metrics = written["metrics"]
    for name in ("test_nll", "test_perplexity", "test_bits_per_byte", "test_errors"):
        assert math.isfinite(metrics[name]), name
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_nll"]))


@pytest.mark.parametrize("method", ["kd", "dkd", "logitmse", "reversekl", "gjsd"])
def test_a_student_learns_with_losses_over_rows(
    method: str, data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = [*pair(data, method), live(language_teacher), "--run.name=student"]
    outcome = kd("fit", *argv, "--run.test=last")
    assert (outcome.code, outcome.err) == (0, "")
    metrics = record(STUDENT_RUN)["metrics"]
    assert math.isfinite(metrics["test_bits_per_byte"])
    assert 0 < metrics["val_teacher_agreement"] <= 1
    rows = curve(STUDENT_RUN)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


def test_a_cached_teacher_gives_the_live_teachers_losses(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = pair(data, "kd")
    assert kd("fit", *argv, live(language_teacher), "--run.name=live").code == 0
    outcome = kd("cache", *argv, live(language_teacher), "--output=cache")
    assert (outcome.code, outcome.err) == (0, "")
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        "--model.teacher.path=cache",
    ]
    outcome = kd("fit", *argv, *cached, "--run.name=cached")
    assert (outcome.code, outcome.err) == (0, "")
    for live_row, cached_row in zip(
        curve(Path("runs/live")), curve(Path("runs/cached")), strict=True
    ):
        for name in ("train_loss", "train_loss_ce", "train_loss_kd", "val_nll"):
            assert cached_row[name] == live_row[name], name


def test_a_top_k_cache_keeps_the_rest_as_one_cell(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    """The loss over K + 1 cells is at most that over all tokens, and grows with K."""
    argv = [*pair(data, "kd"), "--trainer.max_epochs=1"]
    assert kd("fit", *argv, live(language_teacher), "--run.name=live").code == 0
    first = {}
    for top_k in (2, 299):
        folder = f"cache{top_k}"
        outcome = kd(
            *("cache", *argv, live(language_teacher)),
            *(f"--output={folder}", f"--top-k={top_k}"),
        )
        assert (outcome.code, outcome.err) == (0, "")
        cached = [
            "--model.teacher=kd_lightning.teachers.CachedTeacher",
            f"--model.teacher.path={folder}",
            # Without a step, so that all three students are the same.
            "--model.optimizer.lr=0.000000001",
        ]
        assert kd("fit", *argv, *cached, f"--run.name=top{top_k}").code == 0
        first[top_k] = record(Path(f"runs/top{top_k}"))["metrics"]["train_loss_kd"]
    cached = ["--model.optimizer.lr=0.000000001"]
    assert (
        kd("fit", *argv, live(language_teacher), *cached, "--run.name=full").code == 0
    )
    whole = record(Path("runs/full"))["metrics"]["train_loss_kd"]
    assert first[2] < first[299]
    # All tokens but one, and one cell for it.
    assert first[299] == pytest.approx(whole, rel=1e-5)


def test_logits_in_chunks_train_and_measure_the_same(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = ["fit", *pair(data, "kd"), live(language_teacher), "--run.test=last"]
    assert kd(*argv, "--run.name=whole").code == 0
    outcome = kd(*argv, "--run.name=chunks", "--model.row_chunk=7")
    assert (outcome.code, outcome.err) == (0, "")
    whole = record(Path("runs/whole"))["metrics"]
    chunks = record(Path("runs/chunks"))["metrics"]
    assert whole.keys() == chunks.keys()
    for name, value in whole.items():
        if name.startswith(("train_", "val_", "test_")):
            assert chunks[name] == pytest.approx(value, rel=1e-3), name
    # The option is no part of what is learned: the checkpoint is that of any run.
    checkpoint = Path("runs/chunks/checkpoints/last.ckpt")
    assert kd("test", f"--ckpt_path={checkpoint}", "--run.name=again").code == 0


def test_losses_that_need_all_logits_refuse_chunks(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = [*pair(data, "taid"), live(language_teacher), "--model.row_chunk=7"]
    outcome = kd("fit", *argv)
    assert outcome.code == 2
    assert "model.row_chunk: the loss 'taid'" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_student_learns_on_its_own_texts(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = [
        *("fit", *common(data), "--run.name=student"),
        *("-c", "configs/pairs/llama6_llama2_on_policy.yaml", live(language_teacher)),
        *sizes("student", TINY_STUDENT),
        *("--model.prompt_tokens=4", "--model.share=0.5", "--run.test=last"),
    ]
    outcome = kd(*argv)
    assert (outcome.code, outcome.err) == (0, "")
    assert math.isfinite(record(STUDENT_RUN)["metrics"]["test_bits_per_byte"])
    assert record(STUDENT_RUN)["job_type"] == "distill"
    rows = curve(STUDENT_RUN)
    assert float(rows[1]["train_loss_gjsd"]) > 0
    assert float(rows[1]["val_nll"]) < float(rows[0]["val_nll"])

    outcome = kd(*argv, "--run.name=packed", "--data.packed=true")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "set --data.packed=false" in outcome.err


def test_a_run_resumes_within_an_epoch(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    argv = [
        *("fit", *pair(data, "kd"), live(language_teacher), "--run.name=whole"),
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=3",
        "--trainer.callbacks.save_top_k=-1",
    ]
    assert kd(*argv).code == 0
    folder = Path("runs/whole/checkpoints")
    expected = torch.load(folder / "last.ckpt", weights_only=True)
    (middle,) = folder.glob("*step=9.ckpt")
    assert kd("fit", f"--ckpt_path={middle}").code == 0
    actual = torch.load(folder / "last.ckpt", weights_only=True)
    assert expected["state_dict"].keys() == actual["state_dict"].keys()
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, actual["state_dict"][name]), name


def test_a_teacher_of_other_tokens_is_refused(
    data: Path, language_teacher: Path, kd: Kd
) -> None:
    outcome = kd(
        *("fit", *pair(data, "kd"), live(language_teacher)),
        "--data.tokenizer.size=280",
    )
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "300 classes" in outcome.err or "tokens" in outcome.err


def test_test_and_predict_need_no_option(language_teacher: Path, kd: Kd) -> None:
    checkpoint = language_teacher / "checkpoints" / "last.ckpt"
    outcome = kd("test", f"--ckpt_path={checkpoint}", "--run.root=runs")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = kd("predict", f"--ckpt_path={checkpoint}", "--run.root=runs")
    assert (outcome.code, outcome.err) == (0, "")
