"""Small trainings in double precision, by this process or by two that Lightning starts."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule, NoiseDataModule
from kd_lightning.losses import KD
from kd_lightning.losses.generator.dafl import DAFL
from kd_lightning.losses.generator.deepinversion import DeepInversion
from kd_lightning.losses.generator.zskt import ZSKT
from kd_lightning.models import ConvGenerator
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DataFreeModule, DistillationModule
from kd_lightning.training.dot import DOT
from tests.training.small import copied, distillation, mlp, trainer

ROOT = Path(__file__).resolve().parents[2]


def normalized() -> nn.Sequential:
    """A teacher with batch normalization, which has running statistics in evaluation."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def data_free() -> DataFreeModule:
    """All losses of generators.

    Student and generator have no batch normalization, whose statistics are each process's own.
    """
    layers = {"penultimate": "4:input", "norm": "1"}
    generator_losses = {
        "dafl": DAFL(),
        "zskt": ZSKT(),
        "deepinversion": DeepInversion(["norm"], competition=1.0),
    }
    return DataFreeModule(
        mlp(),
        ModelTeacher(network=normalized(), layers=layers),
        ConvGenerator(16, 8, norm=False, input_shape=[1, 8, 8]),
        generator_losses,
        {"kd": KD(temperature=1.0)},
        student_steps=3,
        generator_clip=0.1,
    )


def trained(kind: str, devices: int) -> dict[str, Tensor]:
    """The weights after a training whose last batch is odd.

    Args:
        kind: "dot" or "data-free".
        devices: number of processes, which share each batch of 32.
    """
    torch.manual_seed(0)
    module: DistillationModule
    data: DigitsDataModule | NoiseDataModule
    size = 32 // devices
    settings = {"limit_val_batches": 0, "precision": "64-true", "devices": devices}
    if kind == "dot":
        module = distillation(optimizer=partial(DOT, lr=0.05))
        data = DigitsDataModule(batch_size=size, fraction=0.24, label_fraction=0.9)
        settings["gradient_clip_val"] = 0.5
    else:
        module = data_free()
        digits = DigitsDataModule()
        data = NoiseDataModule(digits, 385, batch_size=size, latent=16, repeat=2)
    if devices > 1:
        settings["strategy"] = "ddp"
    trainer(**settings, max_epochs=2).fit(module, datamodule=data)
    return copied(module)


def launched(kind: str, file: Path) -> dict[str, Tensor]:
    """The same by two new processes."""
    command = [sys.executable, "-m", "tests.training.two_processes", kind, str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    weights: dict[str, Tensor] = torch.load(file, weights_only=True)
    return weights


if __name__ == "__main__":
    weights_of_both = trained(sys.argv[1], devices=2)
    # Lightning starts the second process with the same command.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(weights_of_both, sys.argv[2])
