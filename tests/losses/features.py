"""What the tests of losses between layers share: cases with features on several layers, and a fit of tiny residual networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from typing import cast as cast_to

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import CrossEntropy, DistillLoss, Probe
from kd_lightning.models import CIFARResNet
from kd_lightning.runs.launch import RunResult
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output, full
from kd_lightning.weights import network_weights
from tests.losses import properties
from tests.losses.properties import (
    Case,
    Check,
    Make,
    cast,
    change,
    leaf,
    select,
    tensors,
)
from tests.training.small import CONFIGS, copied, last, run_fit, same, trainer

Shapes = dict[str, tuple[int, ...]]
"""The shape of a sample's feature, by role."""

LAYERS = {
    "stem": "stage1:input",
    "stage1": "stage1",
    "stage2": "stage2",
    "stage3": "stage3",
    "preact1": "stage1.-1.relu:input",
    "preact2": "stage2.-1.relu:input",
    "preact3": "stage3.-1.relu:input",
    "norm1": "stage1.-1.bn2",
    "norm2": "stage2.-1.bn2",
    "norm3": "stage3.-1.bn2",
    "map": "pool:input",
    "penultimate": "pool",
    "head": "head",
}


def feature_case(
    student: Shapes, teacher: Shapes, rows: int = 4, seed: int = 0
) -> Case:
    """Random float64 features, and logits that no loss between layers reads."""
    rng = torch.Generator().manual_seed(seed)

    def draw(shapes: Shapes) -> Output:
        features = {
            role: torch.randn(rows, *shape, generator=rng, dtype=torch.float64)
            for role, shape in shapes.items()
        }
        return Output(
            torch.randn(rows, 3, generator=rng, dtype=torch.float64), features
        )

    return Case(
        draw(student),
        draw(teacher),
        Batch(torch.zeros(rows, 1), torch.zeros(rows).long(), torch.arange(rows)),
    )


def case_of(student: list[Any], teacher: list[Any], role: str = "stage2") -> Case:
    """A case with one layer whose features are given, as nested lists."""
    features = [
        torch.tensor(values, dtype=torch.float64) for values in (student, teacher)
    ]
    rows = len(student)
    outputs = [
        Output(torch.zeros(rows, 3, dtype=torch.float64), {role: feature})
        for feature in features
    ]
    return Case(
        outputs[0],
        outputs[1],
        Batch(torch.zeros(rows, 1), torch.zeros(rows).long(), torch.arange(rows)),
    )


def probe(output: Output, modules: Mapping[str, nn.Module] | None = None) -> Probe:
    """What `build` is given: the first two samples, in single precision, as a network would give them."""
    return Probe(
        change(output, lambda tensor: tensor[:2].float()), modules=modules or {}
    )


def made(
    loss: Callable[[], DistillLoss],
    case: Case,
    prepare: Callable[[Any], object] = lambda loss: None,
    student_modules: Mapping[str, nn.Module] | None = None,
    teacher_modules: Mapping[str, nn.Module] | None = None,
) -> Make:
    """A fresh loss each time, built for the case from the same numbers; `prepare` may then set its adapters."""

    def make() -> DistillLoss:
        fresh = loss()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh.build(
                probe(case.student, student_modules),
                probe(case.teacher, teacher_modules),
            )
        prepare(fresh)
        return fresh

    return make


def identical_connector(adapter: Any) -> None:
    """Make a 1x1 convolution with batch norm, or a linear layer, give back what it is given."""
    for layer in adapter.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            matrix = torch.eye(
                layer.weight.shape[0], layer.weight.shape[1], dtype=torch.float64
            )
            layer.weight = nn.Parameter(matrix.view(layer.weight.shape))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.BatchNorm2d):
            layer.double()
            if layer.affine:
                layer.weight.data.fill_(math.sqrt(1 + layer.eps))
            layer.eval()


def stays_finite(make: Make, case: Case) -> None:
    """Features of +-1e4 and of zeros, on either side or both: finite values, finite gradients for features and adapters."""
    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda x: 1e4 * x.sign(),
        torch.zeros_like,
        lambda x: x,
    ]
    for ours in kinds:
        for theirs in kinds:
            extreme = replace(
                case,
                student=change(case.student, ours),
                teacher=change(case.teacher, theirs),
            )
            for dtype, enabled in (
                (torch.float32, False),
                (torch.bfloat16, False),
                (torch.float32, True),
            ):
                typed, loss = (
                    cast(extreme, dtype),
                    make().to(full(torch.zeros((), dtype=dtype)).dtype),
                )
                typed = replace(typed, student=change(typed.student, leaf))
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    value = loss(typed.student, typed.teacher, typed.batch)
                torch.autograd.backward(value)
                found = [
                    t.grad
                    for t in (*tensors(typed.student), *loss.parameters())
                    if t.grad is not None
                ]
                assert len(found) >= len(typed.student.features)
                assert all(bool(t.isfinite().all()) for t in (value, *found)), (
                    f"{value} in {dtype}, autocast {enabled}"
                )


def reaches_adapters(make: Make, case: Case) -> None:
    """Every parameter of the loss gets a gradient that is not zero, and the teacher none."""
    loss, teacher = make().double(), change(case.teacher, leaf)
    torch.autograd.backward(loss(case.student, teacher, case.batch))
    parameters = dict(loss.named_parameters())
    assert parameters
    assert [
        name for name, p in parameters.items() if p.grad is None or not p.grad.any()
    ] == []
    assert all(t.grad is None for t in tensors(teacher))


def half_adapters(make: Make, case: Case) -> None:
    """With its adapters in bfloat16 as well, the loss is within a few percent of single precision's, and is single itself."""

    def value(dtype: torch.dtype) -> Tensor:
        loss, typed = make().to(dtype), cast(case, dtype)
        found: Tensor = loss(typed.student, typed.teacher, typed.batch)
        return found

    assert value(torch.bfloat16).dtype == torch.float32
    assert value(torch.bfloat16).item() == pytest.approx(
        value(torch.float32).item(), rel=0.05
    )


def duplicated(make: Make, case: Case) -> None:
    """Every sample twice leaves the loss: no sum over the batch, no batch size in a denominator."""
    twice = torch.arange(len(case.batch)).repeat(2)
    value = properties.value_of(make, case)
    torch.testing.assert_close(properties.value_of(make, select(case, twice)), value)


def one_sample(make: Make, case: Case) -> None:
    """A batch of one sample, as an epoch may end with, has a finite loss and finite gradients."""
    value, gradients = properties.gradients_of(make, select(case, torch.arange(1)))
    assert all(bool(t.isfinite().all()) for t in (value, *gradients))


def mean_over_samples(make: Make, case: Case) -> None:
    """Processes weigh by samples: by rows, an image of many pixels would count more."""
    assert make().mean_over in ("samples", "joint")


WITHOUT_ADAPTERS: tuple[Check, ...] = (
    *(check for check in properties.ALL if check is not properties.half_precision),
    # The backward pass of a matrix product runs in half precision where the caller's autocast does.
    partial(properties.half_precision, rtol=0.02),
    properties.batch_size,
    stays_finite,
    duplicated,
    one_sample,
    mean_over_samples,
)
"""For losses that are a mean over samples and train nothing of their own."""

WITH_ADAPTERS: tuple[Check, ...] = (
    *(check for check in properties.ALL if check is not properties.half_precision),
    partial(properties.half_precision, rtol=0.05),
    stays_finite,
    duplicated,
    one_sample,
    mean_over_samples,
    reaches_adapters,
    half_adapters,
)
"""For losses with adapters, which may couple the samples by batch normalization."""


# -- training ---------------------------------------------------------------------------------------------------------


def residual(loss: DistillLoss, seed: int = 0, **arguments: Any) -> DistillationModule:
    """A tiny residual student and a teacher twice as wide, the same for every seed: it decides the adapters alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = (
            CIFARResNet(8, width, input_shape=[1, 8, 8], num_classes=10)
            for width in (1, 2)
        )
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "own": loss}
    module = DistillationModule(
        student,
        ModelTeacher(network=teacher, layers=LAYERS),
        losses,
        layers=LAYERS,
        **arguments,
    )
    torch.manual_seed(seed)
    module.attach(DigitsDataModule())
    return module


def fitted(
    module: DistillationModule,
    epochs: int = 1,
    ckpt_path: str | None = None,
    **changes: Any,
) -> pl.Trainer:
    """One step of 16 samples an epoch."""
    fit = trainer(
        max_epochs=epochs, limit_train_batches=1, limit_val_batches=0, **changes
    )
    fit.fit(module, datamodule=DigitsDataModule(batch_size=16), ckpt_path=ckpt_path)
    return fit


def trains(loss: Callable[[], DistillLoss], folder: Path) -> DistillationModule:
    """The loss trains the student; its adapters are optimized, kept, restored on resume, and not deployed.

    Returns:
        The module after two steps.
    """
    whole, first, second = (residual(loss(), seed) for seed in (0, 0, 1))
    start, teacher = copied(whole.losses), copied(whole.teacher)
    fitted(whole, epochs=2)
    alone = residual(loss())
    cast_to(DistillLoss, alone.losses["own"]).weight = 0.0
    fitted(alone, epochs=2)
    assert not same(copied(whole.net), copied(alone.net))
    assert same(copied(whole.teacher), teacher)
    assert all(p.grad is None for p in whole.teacher.parameters())

    fit = fitted(first)
    optimized = {
        id(p) for group in fit.optimizers[0].param_groups for p in group["params"]
    }
    assert optimized == {
        id(p) for part in (first.net, first.losses) for p in part.parameters()
    }
    trained = dict(first.losses.named_parameters())
    assert [name for name, p in trained.items() if torch.equal(p, start[name])] == []
    fit.save_checkpoint(folder / "one.ckpt")
    content = torch.load(folder / "one.ckpt", weights_only=True)
    others = {
        key: tensor
        for key, tensor in content["state_dict"].items()
        if not key.startswith("student.")
    }
    assert same(
        {key.removeprefix("losses."): tensor for key, tensor in others.items()},
        copied(first.losses),
    )
    assert set(trained) <= set(first.losses.state_dict())
    assert same(
        network_weights(content), copied(first.net)
    )  # what is deployed: names and tensors of the student

    if trained:  # another seed made other adapters: had they not been restored, the runs would differ
        assert not same(copied(second.losses), start)
    fitted(second, epochs=2, ckpt_path=str(folder / "one.ckpt"))
    assert same(copied(second), copied(whole))
    return whole


PAIR = f"""
model:
  class_path: kd_lightning.DistillationModule
  init_args:
    student: {{class_path: kd_lightning.models.CIFARResNet, init_args: {{depth: 8}}}}
    teacher:
      class_path: kd_lightning.teachers.ModelTeacher
      init_args:
        network: {{class_path: kd_lightning.models.CIFARResNet, init_args: {{depth: 8, width: 2}}}}
        layers: {LAYERS}
    layers: {LAYERS}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.05, momentum: 0.9}}}}
""".replace("'", "")


def run_method(name: str, folder: Path, *arguments: str) -> RunResult:
    """`kd fit` with the method's shipped file on a pair that maps the roles; two steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pair.yaml").write_text(PAIR)
    configs = [str(folder / "pair.yaml"), str(CONFIGS / "methods" / f"{name}.yaml")]
    return run_fit(
        folder / "run",
        configs,
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        *arguments,
    )


def checkpoint_of(run: RunResult) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(last(run), weights_only=True)
    return content
