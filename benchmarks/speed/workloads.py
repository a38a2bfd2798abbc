"""The workloads to compare: manual training loops, and the same training through the Trainer."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning import ClassifierModule, DistillationModule
from kd_lightning.data import ImageDataModule, Images
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.runs.compile import CompileNetworks
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.profiler import NoProfiler
from kd_lightning.runs.progress import RunProgress
from kd_lightning.teachers import ModelTeacher, Teacher
from kd_lightning.training.optimizers import OptimizerFactory
from kd_lightning.types import Batch

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)
"""PyTorch's own default implementation, which the manual loops use."""
FUSED = partial(SGD, fused=True)
"""The default of kd_lightning and of all shipped configs."""
TEMPERATURE = 20.0
WARM_UP_STEPS = 3

Precision = Literal["32-true", "bf16-mixed"]


class Noise(ImageDataModule):
    """Random images of CIFAR's shape: the cost of a step does not depend on the pixels."""

    name = "noise"
    classes = tuple("0123456789")
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def load(self, split: str) -> Images:
        """4,096 random samples for either split."""
        images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
        target = torch.randint(0, 10, (4096,))
        return Images(images, target)


class Clock(pl.Callback):
    """Measures the seconds from the first batch to the end of training, including hooks.

    Args:
        warm_up: number of first batches that are not measured.
    """

    def __init__(self, warm_up: int = 0) -> None:
        self.warm_up = warm_up
        self.started = 0.0
        self.seconds = 0.0

    def on_train_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Tensor] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Restart the clock after the last batch that is not measured."""
        if batch_idx + 1 == self.warm_up:
            self.started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def fit(
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    steps: int,
    precision: Precision = "32-true",
    switch: pl.Callback | None = None,
) -> float:
    """Train through the Trainer with the metrics, the metrics.csv and the progress of `kd fit`.

    Args:
        module: the module to train.
        datamodule: its data.
        steps: number of steps to measure.
        precision: see `lightning.pytorch.Trainer`.
        switch: an additional callback. If it is CompileNetworks, the first steps, which wait for
            the compiler, are not measured.

    Returns:
        Seconds per step.
    """
    # A compiler may work for minutes before the first step, which no long run would notice.
    warm_up = WARM_UP_STEPS if isinstance(switch, CompileNetworks) else 0
    clock = Clock(warm_up)
    callbacks: list[pl.Callback] = [clock, RunProgress()]
    if switch is not None:
        callbacks.append(switch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=steps + warm_up,
            accelerator="cpu",
            precision=precision,
            logger=EpochCSVLogger(Path(folder)),
            callbacks=callbacks,
            profiler=NoProfiler(),
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=datamodule)
    return clock.seconds / steps


def distilled(
    make_student: Callable[[], nn.Module],
    teacher: nn.Module | Teacher,
    datamodule: pl.LightningDataModule,
    steps: int,
    precision: Precision = "32-true",
    switch: pl.Callback | None = None,
    optimizer: OptimizerFactory = FUSED,
    channels_last: bool = False,
) -> float:
    """Distill through the Trainer.

    Args:
        make_student: builds a new student.
        teacher: a network, or a Teacher such as a cache.
        datamodule: the data.
        steps: number of steps to measure.
        precision: see `fit`.
        switch: see `fit`.
        optimizer: see DistillationModule.
        channels_last: see DistillationModule.

    Returns:
        Seconds per step.
    """
    if not isinstance(teacher, Teacher):
        # A copy, because some switches change the network in place, which must not affect others.
        teacher = ModelTeacher(network=copy.deepcopy(teacher))
    losses = {
        "ce": CrossEntropy(weight=0.1),
        "kd": KD(weight=0.9, temperature=TEMPERATURE),
    }
    module = DistillationModule(
        make_student(),
        teacher,
        losses,
        optimizer=optimizer,
        channels_last=channels_last,
    )
    return fit(module, datamodule, steps, precision, switch)


def at_precision(matmul: str, workload: Callable[[], float]) -> float:
    """Run a workload under `--matmul_precision`."""
    torch.set_float32_matmul_precision(matmul)
    # The setting holds for the whole process, so it must not reach the next workload.
    try:
        return workload()
    finally:
        torch.set_float32_matmul_precision("highest")


def plain(
    make_student: Callable[[], nn.Module],
    datamodule: pl.LightningDataModule,
    steps: int,
) -> float:
    """Train the student alone through the Trainer; returns seconds per step."""
    module = ClassifierModule(make_student(), optimizer=FUSED)
    return fit(module, datamodule, steps)


def epoch_seconds(datamodule: ImageDataModule, epochs: Iterable[int]) -> list[float]:
    """Seconds to serve all training batches of each epoch; nothing is trained."""
    loader = datamodule.train_dataloader()
    seconds = []
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
    datamodule: ImageDataModule,
    steps: int,
    cached: bool = False,
) -> float:
    """Distill in a manual loop over tensors in memory, without logging and metrics.

    Args:
        make_student: builds a new student.
        teacher: the teacher.
        datamodule: the data.
        steps: number of steps.
        cached: whether to compute the teacher's soft targets before the clock starts.

    Returns:
        Seconds per step.
    """
    source = datamodule.source("train")
    images = source.images
    target = source.target
    # The source holds bytes; its mean and deviation refer to pixel values in [0, 1].
    mean = 255 * source.mean[:, None, None]
    std = 255 * source.std[:, None, None]
    batch_size = datamodule.batch_size
    student = make_student().train()
    teacher = teacher.eval()
    optimizer = SGD(student.parameters())
    order = source.rows[torch.randperm(len(source))]

    def rows_of(step: int) -> Tensor:
        """The rows of a step's batch, int64 `(batch_size,)`."""
        return order[step * batch_size : (step + 1) * batch_size]

    def soft_targets(x: Tensor) -> Tensor:
        """The teacher's log-probabilities at the temperature, `(B, K)`."""
        with torch.no_grad():
            logits = teacher(x)
            return torch.log_softmax(logits / TEMPERATURE, dim=-1)

    # The cache of a manual loop: soft targets in the order in which the steps use them.
    table: list[Tensor] = []
    for step in range(steps if cached else 0):
        x = (images[rows_of(step)].float() - mean) / std
        table.append(soft_targets(x))
    started = time.perf_counter()
    for step in range(steps):
        rows = rows_of(step)
        x = (images[rows].float() - mean) / std
        y = target[rows]
        # The teacher runs before the student: the other order costs new memory pages per step.
        soft = table[step] if cached else soft_targets(x)
        logits = student(x)
        loss = _loss(logits, y, soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def _loss(logits: Tensor, target: Tensor, soft: Tensor) -> Tensor:
    """The loss of `distilled`, written by hand.

    Args:
        logits: the student's, `(B, K)`.
        target: int64 `(B,)`.
        soft: the teacher's log-probabilities at the temperature, `(B, K)`.
    """
    log_probs = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    kl = F.kl_div(log_probs, soft, reduction="batchmean", log_target=True)
    cross_entropy = F.cross_entropy(logits, target)
    return 0.1 * cross_entropy + 0.9 * TEMPERATURE**2 * kl
