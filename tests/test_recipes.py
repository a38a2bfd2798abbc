"""What the recipes under configs/recipes say, and what their papers say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule, Flip, Mixup, RandomResizedCrop
from kd_lightning.losses import KD
from kd_lightning.runs.parsing import parse_config
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from tests.training.small import CONFIGS, mlp, trainer


class Watched(nn.Module):
    """Stores what it reads in training."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.network = mlp()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            self.seen.append(x.clone())
        logits: Tensor = self.network(x)
        return logits


def test_function_matching() -> None:
    files = ["trainer", "data/digits", "pairs/resnet20_resnet8"]
    names = [*files, "recipes/function_matching"]
    argv = [word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    config: dict[str, Any] = parse_config(["fit", *argv])
    losses = config["model"]["init_args"]["losses"]
    # No labels, and a schedule of more than a thousand epochs.
    assert list(losses) == ["kd"]
    assert config["trainer"]["max_epochs"] >= 1000
    augment = config["data"]["init_args"]["augment"]
    classes = [entry["class_path"].rpartition(".")[2] for entry in augment]
    assert classes == ["RandomResizedCrop", "Flip", "Mixup"]
    assert augment[2]["init_args"]["alpha"] == 1.0
    assert augment[0]["init_args"]["scale"][0] < 0.1


def test_both_networks_read_the_same_mixed_view() -> None:
    own: list[Tensor] = []
    other: list[Tensor] = []
    augment = [RandomResizedCrop(), Flip(), Mixup()]
    data = DigitsDataModule(batch_size=32, fraction=0.1, augment=augment)
    teacher = ModelTeacher(network=Watched(other))
    module = DistillationModule(Watched(own), teacher, {"kd": KD(2.0)})
    run = trainer(max_epochs=2, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert len(own) == len(other) == run.global_step
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    # Another epoch draws other views: no image is read twice.
    rows = torch.cat([inputs.flatten(1) for inputs in own])
    assert len(rows.unique(dim=0)) == len(rows)
