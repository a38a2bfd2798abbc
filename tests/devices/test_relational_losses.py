"""Losses between samples: two processes (gloo) see the joined batch, and learn from it what one process would.

This file is also the program that the two processes run: `python -m tests.devices.test_relational_losses WHAT FOLDER RANK`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import CRD, RKD, SP, CrossEntropy, DistillLoss, Probe
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.modules import DistillationModule
from kd_lightning.modules.base import BaseModule
from kd_lightning.teachers import ModelTeacher
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.modules.small import mlp, trainer

ROOT = Path(__file__).parents[2]
ROWS, WIDTH, SIZES = 40, 6, (8, 7, 1, 8)
"""Joined batches: of two processes, 4 and 4, 4 and 3, 1 and none, 4 and 4 samples."""

FRACTION = 0.046

METHODS: dict[str, Callable[[], DistillLoss]] = {
    "sp": partial(SP, "layer"),
    "rkd": partial(RKD, layer="layer"),
    "rkd benchmark": partial(RKD, layer="layer", convention="benchmark"),
    "crd": partial(CRD, "layer", 5, 9),
    "crd instance": partial(CRD, "layer", 5, 9, negatives="instance"),
    "crd in batch": partial(CRD, "layer", 5, in_batch=True),
    "crd in batch instance": partial(CRD, "layer", 5, in_batch=True, negatives="instance"),
}


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """What the loader gives a process of a joined batch."""
    rows = torch.arange(len(batch))[rank::world_size]
    ghost, rows = not len(rows), rows if len(rows) else torch.tensor([0])
    inputs = cast(Tensor, batch.inputs)
    return Batch(inputs[rows], batch.target[rows], batch.index[rows], ghost=ghost)


def scaled(loss: DistillLoss, value: Tensor, batch: Batch, world_size: int) -> Tensor:
    """As the module scales it, but in double precision: quotients of counts are of the default type."""
    module = cast(Any, SimpleNamespace(losses={"it": loss}, _world_size=world_size))
    torch.set_default_dtype(torch.float64)
    _, (value,) = BaseModule._joined(module, batch, [value])
    torch.set_default_dtype(torch.float32)
    return value


def train(make: Callable[[], DistillLoss], rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """Steps of gradient descent as the module and DDP take them; every loss, gradient and buffer, by name."""
    torch.manual_seed(0)
    student, teacher, loss = nn.Linear(3, WIDTH).double(), nn.Linear(3, WIDTH).double(), make()
    probe = Probe(Output(torch.zeros(2, 4), {"layer": torch.zeros(2, WIDTH)}), {}, {"source_samples": ROWS})
    loss.build(probe, probe)
    loss.double()
    seen: dict[str, Tensor] = {}
    named = {**dict(student.named_parameters()), **dict(loss.named_parameters())}
    order = torch.randperm(ROWS)
    for step, size in enumerate(SIZES):
        index, order = order[:size], order[size:]
        target = torch.where(index % 7 == 0, UNLABELLED, index % 3)
        batch = share(Batch(torch.randn(size, 3, dtype=torch.float64), target, index), rank, world_size)
        outputs = [Output(batch.target.double()[:, None], {"layer": net(batch.inputs)}) for net in (student, teacher)]
        value = loss(*outputs, batch)
        if world_size > 1:
            value = scaled(loss, value, batch, world_size)
        gradients = torch.autograd.grad(value, list(named.values()))
        for name, tensor in {"loss": value.detach(), **dict(zip(named, gradients, strict=True))}.items():
            if world_size > 1:  # DDP's mean of gradients, and the module's of losses
                dist.all_reduce(tensor)
            seen[f"{step} {name}"] = tensor / world_size
        for name, parameter in named.items():
            parameter.data -= 0.1 * seen[f"{step} {name}"]
    return {**seen, **{f"buffer {name}": buffer for name, buffer in loss.named_buffers()}}


def gather(rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """The joined rows, and the gradient of each process's own where every process asks for the sum of weight * row."""
    seen: dict[str, Tensor] = {}
    for size in SIZES:
        rows = torch.arange(2.0 * size).reshape(size, 2)
        batch = share(Batch(rows, torch.zeros(size, dtype=torch.int64), torch.arange(size)), rank, world_size)
        own = cast(Tensor, batch.inputs).clone().requires_grad_()
        joined = JoinedBatch(batch)
        (joined(own) * torch.arange(1.0, size + 1)[:, None]).sum().backward()
        assert own.grad is not None
        seen |= {f"{size} rows": joined(own).detach(), f"{size} index": joined(batch.index), f"{size} gradient": own.grad}
    return seen


def fit(world_size: int = 1) -> dict[str, Tensor]:
    """An epoch on digits under all losses at once: five steps of ten samples, and one of a single one."""
    torch.manual_seed(0)
    layers = {"layer": "body"}
    methods = {"ce": CrossEntropy(), **{name.replace(" ", "_"): make() for name, make in METHODS.items()}}
    student, teacher = mlp(), ModelTeacher(network=mlp(12), layers=layers)
    module = DistillationModule(student, teacher, methods, layers=layers)
    strategy = {"devices": 2, "strategy": "ddp"} if world_size > 1 else {}
    run = trainer(precision="64-true", limit_val_batches=0, **strategy)
    run.fit(module, datamodule=DigitsDataModule(batch_size=10 // world_size, fraction=FRACTION))
    return {**{name: value.double() for name, value in run.callback_metrics.items()}, **module.state_dict()}


def program(what: str, folder: Path, rank: int) -> None:
    """What one of the two processes does; Lightning starts the second itself."""
    if what == "fit":
        torch.save(fit(2), folder / f"fit-{os.environ.get('LOCAL_RANK', '0')}.pt")
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({"gather": gather(rank, 2), **{n: train(make, rank, 2) for n, make in METHODS.items()}}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.devices.test_relational_losses", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
            # Both processes ask for the sum: twice the gradient that one would see; none for a ghost.
            own = 2 * one[f"{size} gradient"][rank::2]
            assert torch.equal(two[f"{size} gradient"], own if len(own) else torch.zeros(1, 2))


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_of_one_process(name: str, both: Both) -> None:
    one, first, second = train(METHODS[name]), both[0][name], both[1][name]
    assert one.keys() == first.keys()
    for key, tensor in one.items():
        assert torch.allclose(first[key], tensor, rtol=0, atol=1e-9), key
        assert torch.equal(first[key], second[key]), key  # banks too are the same on both, without being sent
    assert all(one[f"{step} loss"] > 0 for step in range(len(SIZES)) if SIZES[step] > 1)


def test_a_fit_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    assert len(DigitsDataModule(fraction=FRACTION).source("train")) == 51
    process = start("fit", str(tmp_path), "0")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    one, two = fit(), torch.load(tmp_path / "fit-0.pt", weights_only=True)
    assert one.keys() == two.keys()
    assert {"losses.crd.student_bank", "losses.crd.embeddings.student.weight", "train_loss_sp"} <= one.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-6, atol=1e-6), name


if __name__ == "__main__":
    program(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
