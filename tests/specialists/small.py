"""Checkpoints of generalists and specialists that nobody trained, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.models import MLP
from kd_lightning.spec import Spec, SpecialistInfo
from kd_lightning.weights import KEY


def save(path: Path, spec: Spec, seed: int, hidden: int = 12) -> str:
    """A checkpoint as `kd fit` leaves it, of a network with random weights for data of that spec."""
    arguments: dict[str, Any] = {
        "hidden": [hidden],
        "input_shape": list(spec.input_shape or ()),
        "num_classes": spec.num_classes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(**arguments)
    for parameter in network.parameters():
        parameter.data *= 3  # opinions that differ
    weights = {
        f"network.{name}": tensor for name, tensor in network.state_dict().items()
    }
    described = {"class_path": "kd_lightning.models.MLP", "init_args": arguments}
    ours = {
        "role": "network",
        "network": described,
        "spec": spec.to_dict(),
        "teacher": [],
    }
    torch.save({"state_dict": weights, KEY: ours}, path)
    return str(path)


def specialist_spec(
    spec: Spec, class_ids: list[int], oversampling: float = 1.5
) -> Spec:
    """The spec of a specialist's data."""
    names = [spec.classes[class_id] for class_id in class_ids]
    specialist = SpecialistInfo(
        number=0, of=1, class_ids=class_ids, oversampling=oversampling, generalist=""
    )
    return replace(
        spec,
        num_classes=len(class_ids) + 1,
        classes=(*names, "other"),
        specialist=specialist,
    )


def generalist(folder: Path, seed: int = 0) -> str:
    return save(folder / f"generalist{seed}.ckpt", DigitsDataModule().spec, seed)


def specialist(
    folder: Path, class_ids: list[int], oversampling: float = 1.5, seed: int = 1
) -> str:
    spec = specialist_spec(DigitsDataModule().spec, class_ids, oversampling)
    return save(folder / f"specialist{seed}.ckpt", spec, seed)
