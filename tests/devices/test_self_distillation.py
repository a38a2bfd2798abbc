"""Two processes (gloo) learn from companions and from earlier predictions as one process does.

This file is also the program that the first process runs: `python -m
tests.devices.test_self_distillation FOLDER`. Lightning starts the second one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor

from kd_lightning.data import DigitsDataModule, Jitter
from kd_lightning.losses import CSKD, PSKD, CrossEntropy
from kd_lightning.training import ClassifierModule
from tests.training.small import copied, mlp, same, trainer

ROOT = Path(__file__).parents[2]
FRACTION = 0.046
"""51 samples: five steps of ten, and one of a single one, in which a process has none."""

Learned = dict[str, Tensor]


def fit(
    world_size: int, ckpt: Path | None = None, **changes: Any
) -> tuple[Trainer, ClassifierModule]:
    """Epochs on augmented digits, of which a tenth has no label."""
    torch.manual_seed(0)
    losses = {
        "ce": CrossEntropy(weight=0.5),
        "cskd": CSKD(),
        "pskd": PSKD(alpha=0.8, epochs=3),
    }
    module = ClassifierModule(mlp(), losses)
    strategy = {"devices": 2, "strategy": "ddp"} if world_size > 1 else {}
    settings = {"max_epochs": 3, "limit_val_batches": 0, **strategy, **changes}
    data = DigitsDataModule(
        batch_size=10 // world_size,
        fraction=FRACTION,
        label_fraction=0.9,
        augment=[Jitter(1)],
    )
    run = trainer(**settings)
    run.fit(module, datamodule=data, ckpt_path=ckpt)
    return run, module


def learned(run: Trainer, module: ClassifierModule) -> Learned:
    """Losses, weights and predictions."""
    losses = {name: value.double() for name, value in run.callback_metrics.items()}
    return {**losses, **module.state_dict()}


def program(folder: Path) -> None:
    """What each of the two processes does."""
    both = learned(*fit(2, precision="64-true"))
    # Lightning reads a checkpoint before it makes a module double.
    first, _ = fit(2, max_epochs=1)
    first.save_checkpoint(folder / "first.ckpt")
    _, whole = fit(2, max_epochs=2)
    _, resumed = fit(2, folder / "first.ckpt", max_epochs=2)
    seen = {"fit": both, "whole": copied(whole), "resumed": copied(resumed)}
    torch.save(seen, folder / f"{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Learned]]:
    """What each of the two processes had learned."""
    folder = tmp_path_factory.mktemp("two")
    process = subprocess.run(
        [sys.executable, "-m", "tests.devices.test_self_distillation", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    paths = [folder / f"{rank}.pt" for rank in (0, 1)]
    return [torch.load(path, weights_only=True) for path in paths]


def test_two_processes_learn_what_one_learns(both: list[dict[str, Learned]]) -> None:
    assert len(DigitsDataModule(fraction=FRACTION).source("train")) == 51
    one = learned(*fit(1, precision="64-true"))
    for seen in both:
        assert one.keys() == seen["fit"].keys()
        for name, tensor in one.items():
            assert torch.allclose(seen["fit"][name], tensor, rtol=1e-9, atol=1e-9), name
    assert {"losses.pskd.predictions", "train_loss_cskd"} <= one.keys()
    # Every process remembers all samples, those of the other process as well.
    assert int(one["losses.pskd.predictions"].sum(1).gt(0).sum()) == 51


def test_a_resumed_run_is_the_uninterrupted_one(both: list[dict[str, Learned]]) -> None:
    for seen in both:
        assert same(seen["resumed"], seen["whole"])
        assert same(seen["whole"], both[0]["whole"])


if __name__ == "__main__":
    program(Path(sys.argv[1]))
