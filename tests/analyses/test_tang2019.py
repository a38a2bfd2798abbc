"""An ensemble of finished runs, and how many sentences a second a run's network classifies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments.tang2019.analysis.sentences import (
    best_validation,
    mean_of_logits,
    throughput,
)
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished
from kd_lightning.runs.launch import launch
from tests.sentences import write_sst2
from tests.training.small import CONFIGS

TARGET = torch.tensor([0, 1, 1])


def finished(folder: Path, seed: int, logits: list[list[float]]) -> Finished:
    folder.mkdir(parents=True)
    said = {"logits": torch.tensor(logits), "target": TARGET, "index": torch.arange(3)}
    save_file(said, folder / "predictions-test.safetensors")
    return Finished(seed, folder, {})


def test_the_mean_of_logits_seed_by_seed(tmp_path: Path) -> None:
    sure, unsure = (
        [[4.0, 0.0], [0.0, 1.0], [3.0, 0.0]],
        [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]],
    )
    runs = {
        "a": [
            finished(tmp_path / f"a{seed}", seed, sure if seed else unsure)
            for seed in (0, 1)
        ],
        "b": [finished(tmp_path / f"b{seed}", seed, unsure) for seed in (1, 0, 2)],
    }
    errors, accuracy = mean_of_logits(runs, tmp_path, "both", ["a", "b"])
    # Seed 0: always class 1, one error. Seed 1: the sure one decides, (2, .5), (0, 1), (1.5, .5): one error, another one.
    assert (errors.run, errors.metric, errors.values) == (
        "both",
        "test_errors",
        [1.0, 1.0],
    )
    assert accuracy.values == pytest.approx([2 / 3, 2 / 3])
    alone, _ = mean_of_logits({"a": runs["a"][1:]}, tmp_path, "one", ["a"])
    assert alone.values == [1.0]
    with pytest.raises(UserError, match="both: the runs a, b have no seed in common"):
        mean_of_logits(
            {"a": runs["a"][:1], "b": runs["b"][:1]}, tmp_path, "both", ["a", "b"]
        )


def test_the_best_epoch(tmp_path: Path) -> None:
    for name, text in (
        ("a", "epoch,val_accuracy\n0,0.5\n1,0.75\n2,0.25\n"),
        ("b", "epoch,val_accuracy\n0,0.5\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    (tmp_path / "cache").mkdir()
    runs = {
        "r": [Finished(at, tmp_path / name, {}) for at, name in enumerate("ab")],
        "c": [Finished(0, tmp_path / "cache", {})],
    }
    (row,) = best_validation(runs, tmp_path)
    assert (row.run, row.metric, row.values) == ("r", "best_val_accuracy", [0.75, 0.5])


def test_sentences_a_second(tmp_path: Path) -> None:
    root = write_sst2(tmp_path / "data", test=50)
    files = [
        "trainer.yaml",
        "data/sst2.yaml",
        "teachers/sst2_bilstm.yaml",
        "loggers/csv.yaml",
    ]
    named = [word for name in files for word in ("-c", str(CONFIGS / name))]
    small = [
        "--model.network.embedding=4",
        "--model.network.hidden=4",
        "--data.tokenizer=kd_lightning.data.WordTokenizer",
    ]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    run = launch(
        [
            "fit",
            *named,
            *small,
            *quick,
            f"--data.root={root}",
            f"--run.dir={tmp_path / 'run'}",
        ]
    )
    runs = {"some": [Finished(0, run.folder, {})]}
    row, both, size = throughput(
        runs, tmp_path, ["some"], {"both": ["some", "some"]}, batch_size=20, repeats=1
    )
    assert (row.run, row.metric) == ("some", "sentences_per_second")
    assert 50 < row.values[0] < 1e7
    assert both.values == pytest.approx([row.values[0] / 2])
    assert (both.run, both.metric, size.run) == ("both", "sentences_per_second", "both")
    assert (size.metric, size.values) == (
        "parameters",
        [2.0 * sum(p.numel() for p in run.module.net.parameters())],
    )
