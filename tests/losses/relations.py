"""What the tests of losses between samples share: cases with features, and a short training of tiny residual networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor, nn
from torch.testing import assert_close

from kd_lightning import losses
from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import DistillLoss
from kd_lightning.models import CIFARResNet
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from kd_lightning.weights import network_weights
from tests.losses import properties
from tests.losses.properties import (
    Case,
    Check,
    Make,
    cast,
    change,
    gradients_of,
    leaf,
    tensors,
    value_of,
)
from tests.training.small import copied, same, trainer

METHODS = Path(__file__).resolve().parents[2] / "configs" / "methods"
LAYERS = {"stage3": "stage3", "penultimate": "pool"}


def feature_case(
    layer: str,
    rows: int = 6,
    student: tuple[int, ...] = (4,),
    teacher: tuple[int, ...] = (3,),
    scale: float = 1.0,
    seed: int = 0,
) -> Case:
    """Random float64 features of these shapes a sample, logits, and labels of three classes; rows 0, 1, 2, ... of the data."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(rows, *shape, generator=rng, dtype=torch.float64)

    batch = Batch(torch.zeros(rows, 1), torch.arange(rows) % 3, torch.arange(rows))
    return Case(
        Output(draw(5), {layer: draw(*student)}),
        Output(draw(5), {layer: draw(*teacher)}),
        batch,
    )


def of_rows(layer: str, student: list[list[float]], teacher: list[list[float]]) -> Case:
    case = feature_case(layer, len(student))
    return with_features(
        case,
        torch.tensor(student, dtype=torch.float64),
        torch.tensor(teacher, dtype=torch.float64),
    )


def with_features(case: Case, student: Tensor, teacher: Tensor) -> Case:
    (layer,) = case.student.features
    ours, theirs = (
        replace(case.student, features={layer: student}),
        replace(case.teacher, features={layer: teacher}),
    )
    return Case(ours, theirs, case.batch)


def features(case: Case) -> tuple[Tensor, Tensor]:
    (layer,) = case.student.features
    return case.student.features[layer], case.teacher.features[layer]


def rows_of(feature: Tensor) -> list[list[float]]:
    rows: list[list[float]] = feature.flatten(1).tolist()
    return rows


def stays_finite(make: Make, case: Case) -> None:
    """Features of +-1e4, of zeros, of one zero row, and equal rows: finite values and gradients that are not huge."""
    s, t = features(case)

    def some(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]), x[1:]])

    def equal(x: Tensor) -> Tensor:
        return torch.cat([x[1:2], x[1:]])

    def itself(x: Tensor) -> Tensor:
        return x

    kinds = [
        lambda x: 1e4 * x.sign(),
        torch.zeros_like,
        some,
        equal,
        lambda x: x[:1].expand_as(x).clone(),
    ]
    for kind in kinds:
        for ours, theirs in ((kind, kind), (kind, itself), (itself, kind)):
            changed = with_features(case, ours(s), theirs(t))
            for dtype, enabled in (
                (torch.float32, False),
                (torch.bfloat16, False),
                (torch.float32, True),
            ):
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    value, gradients = gradients_of(make, cast(changed, dtype))
                assert value.isfinite(), f"{value} in {dtype}, autocast {enabled}"
                # Dividing by a norm that was kept from zero by an epsilon would give 1e8 and more.
                assert all(
                    bool(g.isfinite().all()) and g.abs().max() < 1e5 for g in gradients
                )


def half_precision(make: Make, case: Case) -> None:
    """The shared check, but for what runs in the backward pass: called within autocast, it multiplies matrices in bfloat16."""
    properties.half_precision(make, case, rtol=2**-6)
    single = cast(case, torch.float32)
    value, gradients = gradients_of(make, single)
    ours = replace(single, student=change(single.student, leaf))
    with torch.autocast("cpu", torch.bfloat16):
        under = value_of(make, ours)
    assert_close(under, value, rtol=1e-6, atol=1e-7)
    found = torch.autograd.grad(under, tensors(ours.student), materialize_grads=True)
    assert_close(list(found), gradients, rtol=1e-5, atol=1e-6)


PROPERTIES: tuple[Check, ...] = (
    *(check for check in properties.ALL if check is not properties.half_precision),
    half_precision,
)


def method(name: str) -> dict[str, DistillLoss]:
    """The losses of a shipped method file."""
    content = yaml.safe_load((METHODS / f"{name}.yaml").read_text())["model"][
        "init_args"
    ]["losses"]
    classes = {
        key: getattr(losses, entry["class_path"].rpartition(".")[2])
        for key, entry in content.items()
    }
    return {key: classes[key](**entry["init_args"]) for key, entry in content.items()}


def residual(
    of: dict[str, DistillLoss], seed: int = 0, **arguments: Any
) -> DistillationModule:
    """A tiny residual student and a teacher twice as wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student, teacher = (
            CIFARResNet(8, width, input_shape=[1, 8, 8], num_classes=10)
            for width in (1, 2)
        )
    return DistillationModule(
        student,
        ModelTeacher(network=teacher, layers=LAYERS),
        of,
        layers=LAYERS,
        **arguments,
    )


def fitted(
    module: DistillationModule, ckpt: Path | None = None, **changes: Any
) -> pl.Trainer:
    """Two steps of 16 an epoch, resumed from a checkpoint if there is one."""
    fit = trainer(**{"limit_train_batches": 2, "limit_val_batches": 0, **changes})
    torch.manual_seed(0)  # adapters are drawn as the data meet the networks
    fit.fit(module, datamodule=DigitsDataModule(batch_size=16), ckpt_path=ckpt)
    return fit


def trains(name: str, folder: Path) -> tuple[DistillationModule, dict[str, Any]]:
    """A method file trains a residual network: its loss counts, and its adapters are optimized, kept, and not deployed.

    Returns:
        The module and the checkpoint after two steps.
    """
    module, alone = residual(method(name)), residual(method("ce"))
    fit, _ = fitted(module), fitted(alone)
    assert fit.callback_metrics[f"train_loss_{name}"].item() > 0
    assert not same(copied(module.net), copied(alone.net))
    optimized = {
        id(p) for group in fit.optimizers[0].param_groups for p in group["params"]
    }
    assert optimized == {
        id(p) for part in (module.net, module.losses) for p in part.parameters()
    }
    fit.save_checkpoint(folder / "two.ckpt")
    content: dict[str, Any] = torch.load(folder / "two.ckpt", weights_only=True)
    kept = {
        key.removeprefix("losses.")
        for key in content["state_dict"]
        if key.startswith("losses.")
    }
    assert kept == set(module.losses.state_dict())
    assert same(
        network_weights(content), copied(module.net)
    )  # the student's own tensors, and no adapter
    assert not any(
        "teacher." in key for key in content["state_dict"] if key.startswith("student.")
    )
    assert all(p.grad is None for p in module.teacher.parameters())
    return module, content


def gradients_of_adapters(loss: nn.Module, case: Case) -> dict[str, Tensor]:
    loss.zero_grad()
    loss(case.student, case.teacher, case.batch).backward()
    return {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}


def scaled(case: Case, factor: Tensor | float) -> Case:
    """The student's features times a number, or a number a row."""
    s, t = features(case)
    return with_features(case, s * factor, t)
