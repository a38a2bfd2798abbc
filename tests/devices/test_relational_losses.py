"""Two processes (gloo) learn what one process would on the joined batch: losses between samples, and means over samples.

This file is also the program that the two processes run: `python -m tests.devices.test_relational_losses WHAT FOLDER RANK`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import (
    ABKD,
    AT,
    CC,
    CRD,
    CTKD,
    DIST,
    DKD,
    GJSD,
    KD,
    MLKD,
    NKD,
    PKT,
    RKD,
    RLD,
    SP,
    TAID,
    TTM,
    USKD,
    VID,
    WKDL,
    WSLD,
    AdaptiveKL,
    CrossEntropy,
    DistillLoss,
    FitNets,
    HardDistillation,
    Jeffreys,
    LogitMSE,
    LogitStandardization,
    Probe,
    ReverseKL,
    SkewKL,
    TfKD,
    TotalVariation,
)
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.spec import Spec
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule, Objective
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.training.small import copied, mlp, same, trainer

ROOT = Path(__file__).parents[2]
ROWS, WIDTH, MAP, SIZES = 40, 6, (2, 3, 1), (8, 7, 1, 8)
"""Joined batches: of two processes, 4 and 4, 4 and 3, 1 and none, 4 and 4 samples."""

FRACTION = 0.046

BETWEEN_SAMPLES: dict[str, Callable[[], DistillLoss]] = {
    "sp": partial(SP, "layer"),
    "dist": DIST,
    "mlkd": MLKD,
    "rkd": partial(RKD, layer="layer"),
    "rkd benchmark": partial(RKD, layer="layer", convention="benchmark"),
    "pkt": partial(PKT, "layer"),
    "pkt benchmark": partial(PKT, "layer", "benchmark"),
    "cc": partial(CC, "layer", 5),
    "cc benchmark": partial(CC, "layer", 5, convention="benchmark"),
    "crd": partial(CRD, "layer", 5, 9),
    "crd instance": partial(CRD, "layer", 5, 9, negatives="instance"),
    "crd in batch": partial(CRD, "layer", 5, in_batch=True),
    "crd in batch instance": partial(
        CRD, "layer", 5, in_batch=True, negatives="instance"
    ),
}
MEANS: dict[str, Callable[[], DistillLoss]] = {
    "kd": KD,
    "dkd": DKD,
    "logitstandardization": LogitStandardization,
    "logitmse": LogitMSE,
    "abkd": ABKD,
    "ctkd": CTKD,
    "gjsd": GJSD,
    "skewkl": SkewKL,
    "adaptivekl": AdaptiveKL,
    "taid": TAID,
    "harddistillation": HardDistillation,
    "jeffreys": Jeffreys,
    "nkd": NKD,
    "reversekl": ReverseKL,
    "rld": RLD,
    "tfkd": TfKD,
    "totalvariation": TotalVariation,
    "ttm": partial(TTM, weighted=True),
    "uskd": partial(USKD, "layer", mu=0.5),
    "wkdl": partial(WKDL, transport=1.0),
    "wsld": WSLD,
    "at": partial(AT, ["map"]),
    "at benchmark": partial(AT, ["map"], "benchmark"),
    "vid": partial(VID, ["map"]),
    "vid benchmark": partial(VID, ["map"], "benchmark"),
    "fitnets": partial(FitNets, "map", "map"),
    "fitnets benchmark": partial(FitNets, "map", "map", "benchmark"),
}
METHODS = {**BETWEEN_SAMPLES, **MEANS}


def synchronized(layer: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """Batch normalization by the statistics of all processes, as torch computes it on GPUs; on the CPU it refuses."""
    over = (0, *range(2, x.ndim))
    count, total, squares = all_reduce(
        torch.stack([part.sum(over) for part in (torch.ones_like(x), x, x**2)])
    )
    mean = total / count
    scale = layer.weight * (squares / count - mean**2 + layer.eps).rsqrt()
    shape = (-1, *[1] * (x.ndim - 2))
    normalized: Tensor = x * scale.view(shape) + (layer.bias - mean * scale).view(shape)
    return normalized


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """What the loader gives a process of a joined batch."""
    rows = torch.arange(len(batch))[rank::world_size]
    ghost, rows = not len(rows), rows if len(rows) else torch.tensor([0])
    inputs = cast(Tensor, batch.inputs)
    return Batch(inputs[rows], batch.target[rows], batch.index[rows], placeholder=ghost)


def scaled(loss: DistillLoss, value: Tensor, batch: Batch, world_size: int) -> Tensor:
    """As the module scales it, but in double precision: quotients of counts are of the default type."""
    objective = Objective({"loss": loss})
    objective.begin_epoch(0, world_size)
    torch.set_default_dtype(torch.float64)
    _, (value,) = objective._joined(batch, [value])
    torch.set_default_dtype(torch.float32)
    return value


def output(said: Tensor) -> Output:
    """What a network says as its logits, as a layer of units and as one of maps."""
    return Output(said, {"layer": said, "map": said.unflatten(1, MAP)})


def train(
    make: Callable[[], DistillLoss], rank: int = 0, world_size: int = 1
) -> dict[str, Tensor]:
    """Steps of gradient descent as the module and DDP take them; every loss, gradient and buffer, by name."""
    torch.manual_seed(0)
    student, teacher, loss = (
        nn.Linear(3, WIDTH).double(),
        nn.Linear(3, WIDTH).double(),
        make(),
    )
    probe = Probe(output(torch.zeros(2, WIDTH)), spec=Spec(source_samples=ROWS))
    loss.build(probe, probe)
    loss.double()
    if world_size > 1:
        loss = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    seen: dict[str, Tensor] = {}
    named = {**dict(student.named_parameters()), **dict(loss.named_parameters())}
    order = torch.randperm(ROWS)
    for step, size in enumerate(SIZES):
        index, order = order[:size], order[size:]
        target = torch.where(index % 7 == 0, UNLABELLED, index % 3)
        batch = share(
            Batch(torch.randn(size, 3, dtype=torch.float64), target, index),
            rank,
            world_size,
        )
        value = loss(
            output(student(batch.inputs)), output(teacher(batch.inputs)), batch
        )
        if world_size > 1:
            value = scaled(loss, value, batch, world_size)
        gradients = torch.autograd.grad(value, list(named.values()))
        for name, tensor in {
            "loss": value.detach(),
            **dict(zip(named, gradients, strict=True)),
        }.items():
            if world_size > 1:  # DDP's mean of gradients, and the module's of losses
                dist.all_reduce(tensor)
            seen[f"{step} {name}"] = tensor / world_size
        for name, parameter in named.items():
            parameter.data -= 0.1 * seen[f"{step} {name}"]
    banks = {
        f"buffer {name}": buffer
        for name, buffer in loss.named_buffers()
        if not name.startswith("regressor")
    }
    return {**seen, **banks}


def joined_positions(batch: Batch) -> Tensor:
    """The numbers of three positions per sample, gathered by position, in ascending order."""
    dense = replace(batch, target=batch.target[:, None].expand(-1, 3))
    numbers = 3 * batch.index[:, None] + torch.arange(3)
    return JoinedBatch(dense, positions=True)(numbers.flatten()).sort().values


def gather(rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """The joined rows, and the gradient of each process's own where every process asks for the sum of weight * row."""
    seen: dict[str, Tensor] = {}
    for size in SIZES:
        rows = torch.arange(2.0 * size).reshape(size, 2)
        batch = share(
            Batch(rows, torch.zeros(size, dtype=torch.int64), torch.arange(size)),
            rank,
            world_size,
        )
        own = cast(Tensor, batch.inputs).clone().requires_grad_()
        joined = JoinedBatch(batch)
        (joined(own) * torch.arange(1.0, size + 1)[:, None]).sum().backward()
        assert own.grad is not None
        seen |= {
            f"{size} rows": joined(own).detach(),
            f"{size} index": joined(batch.index),
            f"{size} gradient": own.grad,
            f"{size} positions": joined_positions(batch),
        }
    return seen


def fit(
    world_size: int,
    names: Iterable[str] = BETWEEN_SAMPLES,
    ckpt: Path | None = None,
    **changes: Any,
) -> tuple[Trainer, DistillationModule]:
    """Epochs on digits under several losses at once: five steps of ten samples each, and one of a single one."""
    torch.manual_seed(0)
    layers = {"layer": "body"}
    methods = {
        "ce": CrossEntropy(),
        **{name.replace(" ", "_"): METHODS[name]() for name in names},
    }
    student, teacher = mlp(), ModelTeacher(network=mlp(12), layers=layers)
    module = DistillationModule(student, teacher, methods, layers=layers)
    strategy = {"devices": 2, "strategy": "ddp"} if world_size > 1 else {}
    run = trainer(
        **{"precision": "64-true", "limit_val_batches": 0, **strategy, **changes}
    )
    run.fit(
        module,
        datamodule=DigitsDataModule(batch_size=10 // world_size, fraction=FRACTION),
        ckpt_path=ckpt,
    )
    return run, module


def learned(run: Trainer, module: DistillationModule) -> dict[str, Tensor]:
    """Losses, weights, adapters and banks."""
    return {
        **{name: value.double() for name, value in run.callback_metrics.items()},
        **module.state_dict(),
    }


def resume(folder: Path) -> dict[str, dict[str, Tensor]]:
    """With memory banks: an epoch, two epochs, and two of which the second is a resumed run's."""
    single = partial(
        fit, 2, ["crd"], precision="32-true"
    )  # Lightning reads a checkpoint before it makes a module double
    run, half = single()
    run.save_checkpoint(folder / "half.ckpt")
    _, whole = single(max_epochs=2)
    _, resumed = single(folder / "half.ckpt", max_epochs=2)
    return {"half": copied(half), "whole": copied(whole), "resumed": copied(resumed)}


def program(what: str, folder: Path, rank: int) -> None:
    """What one of the two processes does; Lightning starts the second itself."""
    if what == "fit":
        seen = {"fit": learned(*fit(2)), **resume(folder)}
        torch.save(seen, folder / f"fit-{dist.get_rank()}.pt")
        return
    nn.SyncBatchNorm.forward = synchronized  # type: ignore[assignment, method-assign]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.save(
        {
            "gather": gather(rank, 2),
            **{n: train(make, rank, 2) for n, make in METHODS.items()},
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.devices.test_relational_losses", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


Both = list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What each of the two processes saw, by method."""
    folder = tmp_path_factory.mktemp("relations")
    processes = [start("losses", str(folder), str(rank)) for rank in (0, 1)]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_gathers_the_joined_batch_in_its_order(both: Both) -> None:
    one = gather()
    for rank in (0, 1):
        two = both[rank]["gather"]
        for size in SIZES:
            assert torch.equal(two[f"{size} rows"], one[f"{size} rows"])
            assert torch.equal(two[f"{size} index"], torch.arange(size))
            assert torch.equal(two[f"{size} positions"], torch.arange(3 * size))
            # Both processes ask for the sum: twice the gradient that one would see; none for a ghost.
            own = 2 * one[f"{size} gradient"][rank::2]
            assert torch.equal(
                two[f"{size} gradient"], own if len(own) else torch.zeros(1, 2)
            )


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_of_one_process(name: str, both: Both) -> None:
    one, first, second = train(METHODS[name]), both[0][name], both[1][name]
    assert one.keys() == first.keys()
    for key, tensor in one.items():
        assert torch.allclose(first[key], tensor, rtol=0, atol=1e-9), key
        assert torch.equal(first[key], second[key]), (
            key
        )  # banks too are the same on both, without being sent
    assert all(one[f"{step} loss"] > 0 for step in range(len(SIZES)) if SIZES[step] > 1)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What each of the two processes had learned after each fit."""
    folder = tmp_path_factory.mktemp("fits")
    process = start("fit", str(folder), "0")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [torch.load(folder / f"fit-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_a_fit_by_two_processes_is_that_of_one(fits: Both) -> None:
    assert len(DigitsDataModule(fraction=FRACTION).source("train")) == 51
    one, two = learned(*fit(1)), fits[0]["fit"]
    assert one.keys() == two.keys()
    assert {
        "losses.crd.student_bank",
        "losses.crd.embeddings.student.weight",
        "train_loss_sp",
    } <= one.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-6, atol=1e-6), name


def test_a_resumed_fit_with_banks_is_the_uninterrupted_one(fits: Both) -> None:
    for seen in fits:
        assert same(seen["resumed"], seen["whole"])
        assert same(seen["whole"], fits[0]["whole"])
        assert seen["half"]["losses.crd.steps"] == 6
        assert seen["whole"]["losses.crd.steps"] == 12
    half, whole = fits[0]["half"], fits[0]["whole"]
    learns = (
        "student.body.1.weight",
        *(
            f"losses.crd.{name}"
            for name in ("student_bank", "embeddings.teacher.weight")
        ),
    )
    assert not any(torch.equal(half[name], whole[name]) for name in learns)


if __name__ == "__main__":
    program(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
