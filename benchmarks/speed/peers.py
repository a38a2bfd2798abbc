"""The same distillation as in torchdistill's examples, and as in most Lightning tutorials."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchvision import transforms
from torchvision.datasets import MNIST
from workloads import SGD, TEMPERATURE, Clock

KD_LOSS = {
    "key": "KDLoss",
    "kwargs": {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": 0.1,
        "reduction": "batchmean",
    },
}
LOSS = {
    "key": "WeightedSumLoss",
    "kwargs": {"sub_terms": {"kd": {"criterion": KD_LOSS, "weight": 1.0}}},
}


def mnist(root: str, samples: int) -> Subset[tuple[Tensor, int]]:
    """torchvision's data set with one transform call per sample, as both peers read it."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    return Subset(MNIST(root, train=True, transform=transform), range(samples))


def _torchdistill_config(batch_size: int) -> dict[str, Any]:
    """The training config of torchdistill's example, with the optimizer of our workloads."""
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {
                "batch_size": batch_size,
                "num_workers": 0,
                "pin_memory": False,
                "drop_last": False,
            },
        },
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "wrapper": None,
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "requires_grad": True,
            "wrapper": None,
        },
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
        },
        "criterion": LOSS,
    }


def torchdistill(
    make_student: Callable[[], nn.Module],
    teacher: nn.Module,
    root: str,
    batch_size: int,
    steps: int,
) -> float:
    """Distill with `DistillationBox` in the loop of torchdistill's image classification example.

    Args:
        make_student: builds a new student.
        teacher: the teacher.
        root: folder of the data sets.
        batch_size: samples per step.
        steps: number of steps.

    Returns:
        Seconds per step.
    """
    from torchdistill.core.distillation import DistillationBox
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    device = torch.device("cpu")
    datasets = {"train": mnist(root, batch_size * steps)}
    config = _torchdistill_config(batch_size)
    box = DistillationBox(
        teacher, make_student(), datasets, config, device, None, False, 1
    )
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    box.pre_epoch_process(epoch=0)
    box.student_model.train()
    # The data set and the box are built before the clock starts, as for the other workloads.
    started = time.perf_counter()
    for sample, targets, supplement in logger.log_every(
        box.train_data_loader, 1000, "Epoch: [0]"
    ):
        step_started = time.time()
        # The copies to the device and the two meters are part of the example's loop.
        loss = box.forward_process(sample.to(device), targets.to(device), supplement)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        step_seconds = time.time() - step_started
        logger.meters["img/s"].update(len(sample) / step_seconds)
    box.post_epoch_process()
    return (time.perf_counter() - started) / steps


class _TutorialModule(pl.LightningModule):
    """A teacher and a student, with three metrics and four log calls per step."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.accuracy = MulticlassAccuracy(10)
        self.top3 = MulticlassAccuracy(10, top_k=3)
        self.calibration = MulticlassCalibrationError(10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of inputs `(B, 1, 28, 28)` and targets `(B,)`."""
        x, y = batch
        with torch.no_grad():
            teacher_logits = self.teacher(x)
            soft = torch.softmax(teacher_logits / TEMPERATURE, dim=-1)
        logits = self.student(x)
        log_probs = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        kl = F.kl_div(log_probs, soft, reduction="batchmean")
        cross_entropy = F.cross_entropy(logits, y)
        loss = 0.1 * cross_entropy + 0.9 * TEMPERATURE**2 * kl
        # Progress bar and metrics in every step are what tutorials show, and what costs time.
        self.log("loss", loss, prog_bar=True)
        for name in ("accuracy", "top3", "calibration"):
            metric = getattr(self, name)
            metric(logits, y)
            self.log(name, metric)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of the student."""
        return SGD(self.student.parameters())


def naive_lightning(
    make_student: Callable[[], nn.Module],
    teacher: nn.Module,
    root: str,
    batch_size: int,
    steps: int,
) -> float:
    """Distill in Lightning as tutorials do; see `torchdistill` for arguments and result."""
    clock = Clock()
    dataset = mnist(root, batch_size * steps)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(_TutorialModule(make_student(), teacher), loader)
    return clock.seconds / steps
