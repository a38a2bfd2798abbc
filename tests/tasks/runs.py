"""Runs of tasks on tables: a teacher, its cache, and students, each through `launch`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch

from kd_lightning.data import DataModule
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.teachers import ModelTeacher, cache_teacher
from tests.training.small import CONFIGS

QUICK = [
    "--trainer.max_epochs=6",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--run.test=last",
]


def fit(folder: Path, configs: list[str], *arguments: str) -> RunResult:
    """`kd fit` into that folder."""
    argv = ["fit"]
    for name in ("trainer", *configs, "loggers/csv"):
        argv += ["-c", str(CONFIGS / f"{name}.yaml")]
    return launch([*argv, *QUICK, f"--run.dir={folder}", *arguments])


def cached(run: RunResult, data: DataModule, folder: Path) -> list[str]:
    """Cache the outputs of a run's network; the arguments that make a student read them."""
    teacher = ModelTeacher(checkpoint=str(run.folder / "checkpoints" / "last.ckpt"))
    cache_teacher(teacher, data, folder)
    return [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        f"--model.teacher.path={folder}",
    ]


def column(run: RunResult, name: str) -> list[float]:
    """The values of a metric per epoch, as the run logged them."""
    with (run.folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def check_best(
    run: RunResult, monitor: str, better: Callable[[list[float]], float]
) -> None:
    """`best.ckpt` is the one of the epoch with the best value of the monitored metric."""
    values = column(run, monitor)
    assert len(values) == 6
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == values.index(better(values))
