"""The same distillation as others do it: torchdistill as in its own examples, and Lightning as in most tutorials."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchvision import transforms
from torchvision.datasets import MNIST
from workloads import SGD, TEMPERATURE, Clock

LOSS = {
    "key": "WeightedSumLoss",
    "kwargs": {
        "sub_terms": {
            "kd": {
                "criterion": {
                    "key": "KDLoss",
                    "kwargs": {
                        **{f"{side}_module_path": "." for side in ("student", "teacher")},
                        **{f"{side}_module_io": "output" for side in ("student", "teacher")},
                        "temperature": TEMPERATURE,
                        "alpha": 0.1,
                        "reduction": "batchmean",
                    },
                },
                "weight": 1.0,
            }
        }
    },
}


def mnist(root: str, samples: int) -> Any:
    """torchvision's data set with a transform a sample, as peers read it."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return Subset(MNIST(root, train=True, transform=transform), range(samples))


def torchdistill(
    make_student: Callable[[], nn.Module], teacher: nn.Module, root: str, batch: int, steps: int
) -> float:
    """Seconds a step of `DistillationBox` in the loop of torchdistill's image classification example."""
    from torchdistill.core.distillation import DistillationBox
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    device = torch.device("cpu")
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {
                "batch_size": batch,
                "num_workers": 0,
                "pin_memory": False,
                "drop_last": False,
            },
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False, "wrapper": None},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True, "wrapper": None},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True}},
        "criterion": LOSS,
    }
    box = DistillationBox(
        teacher,
        make_student(),
        {"train": mnist(root, batch * steps)},
        config,
        device,
        None,
        False,
        1,
    )
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    box.pre_epoch_process(epoch=0)
    box.student_model.train()
    started = time.perf_counter()
    for sample, targets, supplement in logger.log_every(box.train_data_loader, 1000, "Epoch: [0]"):
        begun = time.time()
        loss = box.forward_process(sample.to(device), targets.to(device), supplement)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(len(sample) / (time.time() - begun))
    box.post_epoch_process()
    return (time.perf_counter() - started) / steps


class _Naive(pl.LightningModule):
    """A teacher, a student, three metrics and four log calls a step."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.accuracy = MulticlassAccuracy(10)
        self.top3 = MulticlassAccuracy(10, top_k=3)
        self.calibration = MulticlassCalibrationError(10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            soft = torch.softmax(self.teacher(x) / TEMPERATURE, dim=-1)
        logits = self.student(x)
        kl = F.kl_div(torch.log_softmax(logits / TEMPERATURE, dim=-1), soft, reduction="batchmean")
        loss = 0.1 * F.cross_entropy(logits, y) + 0.9 * TEMPERATURE**2 * kl
        self.log("loss", loss, prog_bar=True)
        for name, metric in (
            ("accuracy", self.accuracy),
            ("top3", self.top3),
            ("calibration", self.calibration),
        ):
            metric(logits, y)
            self.log(name, metric)
        return loss

    def configure_optimizers(self) -> Any:
        return SGD(self.student.parameters())


def naive_lightning(
    make_student: Callable[[], nn.Module], teacher: nn.Module, root: str, batch: int, steps: int
) -> float:
    clock = Clock()
    loader: Any = DataLoader(mnist(root, batch * steps), batch_size=batch, shuffle=True)
    off: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[clock], **off)
    trainer.fit(_Naive(make_student(), teacher), loader)
    return clock.seconds / steps
