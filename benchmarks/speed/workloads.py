"""The two sides of each comparison: loops written by hand, and the same training through the Trainer."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from kd_lightning import ClassifierModule, DistillationModule
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.runs.compile import CompileNetworks
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.lean import NoProfiler
from kd_lightning.runs.progress import RunProgress
from kd_lightning.teachers import ModelTeacher, Teacher

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)
"""As PyTorch makes it: what a loop written by hand takes."""
FUSED = partial(SGD, fused=True)
"""As our default and all shipped configs have it."""
TEMPERATURE = 20.0


class Clock(pl.Callback):
    """Seconds from the first batch, or from the one after `warm` batches, to the end of the epoch, its hooks included."""

    def __init__(self, warm: int = 0) -> None:
        self.warm = warm

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, at: int
    ) -> None:
        if at + 1 == self.warm:
            self.started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


def fit(
    module: pl.LightningModule,
    datamodule: Any,
    steps: int,
    precision: Any = "32-true",
    switch: pl.Callback | None = None,
) -> float:
    """Seconds a step through the Trainer, with the metrics, the metrics.csv and the progress of `kd fit`.

    Where the switch is CompileNetworks, the first steps, which wait for the compiler, do not count.
    """
    warm = 3 if isinstance(switch, CompileNetworks) else 0
    clock = Clock(warm)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=steps + warm,
            accelerator="cpu",
            precision=precision,
            logger=EpochCSVLogger(Path(folder)),
            callbacks=[clock, RunProgress(), *([switch] if switch else [])],
            profiler=NoProfiler(),
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=datamodule)
    return clock.seconds / steps


def distilled(
    make_student: Callable[[], nn.Module],
    teacher: Any,
    datamodule: Any,
    steps: int,
    precision: Any = "32-true",
    switch: pl.Callback | None = None,
    **options: Any,
) -> float:
    """Through DistillationModule; the teacher is a network, or a Teacher such as a cache."""
    # A copy: the switches change a network in place, and the other side must not train with what they made of it.
    source = (
        teacher if isinstance(teacher, Teacher) else ModelTeacher(network=copy.deepcopy(teacher))
    )
    losses = {"ce": CrossEntropy(weight=0.1), "kd": KD(weight=0.9, temperature=TEMPERATURE)}
    module = DistillationModule(make_student(), source, losses, **{"optimizer": FUSED, **options})
    return fit(module, datamodule, steps, precision, switch)


def at_precision(matmul: str, workload: Callable[[], float]) -> float:
    """A workload under `--matmul_precision`."""
    torch.set_float32_matmul_precision(matmul)
    try:
        return workload()
    finally:
        torch.set_float32_matmul_precision("highest")


def plain(make_student: Callable[[], nn.Module], datamodule: Any, steps: int) -> float:
    return fit(ClassifierModule(make_student(), optimizer=FUSED), datamodule, steps)


def epoch_seconds(datamodule: Any, epochs: Iterable[int]) -> list[float]:
    """Seconds in which the batches of each epoch reach the module; nothing is trained."""
    loader, seconds = datamodule.train_dataloader(), []
    for epoch in epochs:
        loader.set_epoch(epoch)
        started = time.perf_counter()
        for _ in loader:
            pass
        seconds.append(time.perf_counter() - started)
    return seconds


def by_hand(
    make_student: Callable[[], nn.Module],
    teacher: nn.Module,
    datamodule: Any,
    steps: int,
    cached: bool = False,
) -> float:
    """Seconds a step of a loop that does nothing but the training: in-memory tensors, no logging, no metrics.

    With `cached`, the teacher's soft targets are computed before the clock starts.
    """
    source = datamodule.source("train")
    images, target = source.images, source.target
    mean, std = 255 * source.mean[:, None, None], 255 * source.std[:, None, None]
    student, size = make_student().train(), datamodule.batch_size
    teacher = teacher.eval()
    optimizer = SGD(student.parameters())
    order = source.rows[torch.randperm(len(source))]
    table: dict[int, torch.Tensor] = {}
    for step in range(steps if cached else 0):
        rows = order[step * size : (step + 1) * size]
        with torch.no_grad():
            table[step] = torch.log_softmax(
                teacher((images[rows].float() - mean) / std) / TEMPERATURE, dim=-1
            )
    started = time.perf_counter()
    for step in range(steps):
        rows = order[step * size : (step + 1) * size]
        x, y = (images[rows].float() - mean) / std, target[rows]
        with torch.no_grad():
            soft = table[step] if cached else torch.log_softmax(teacher(x) / TEMPERATURE, dim=-1)
        logits = student(x)
        loss = 0.1 * F.cross_entropy(logits, y) + 0.9 * TEMPERATURE**2 * F.kl_div(
            torch.log_softmax(logits / TEMPERATURE, dim=-1),
            soft,
            reduction="batchmean",
            log_target=True,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps
