"""Losses with connectors, classifiers, views or several teachers: two processes (gloo) learn what one would on the joined batch.

This file is also the program that the two processes run: `python -m tests.devices.test_map_losses FOLDER RANK`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd_lightning.data.source import join_batches
from kd_lightning.losses import (
    AB,
    BYOT,
    CAMKD,
    CATKD,
    FSP,
    ICKD,
    OFA,
    OFD,
    PAD,
    SDD,
    SEED,
    SRRL,
    SSKD,
    WKDF,
    DistillLoss,
    FeatureCosine,
    MultiTeacher,
    Probe,
    ReviewKD,
    SimKD,
)
from kd_lightning.losses.multiteacher import (
    ConfidenceWeights,
    EntropyWeights,
    LearnedWeights,
)
from kd_lightning.types import (
    UNLABELLED,
    Batch,
    EnsembleOutput,
    Output,
    mean_log_probs,
)
from tests.devices.test_relational_losses import (
    ROOT,
    SIZES,
    scaled,
    share,
    synchronized,
)

ROWS = sum(SIZES)
CLASSES = 3


@dataclass
class Method:
    """A loss, and what it is tested with.

    Attributes:
        make: a fresh loss.
        width: channels of the student; the teachers have 4 and 5.
        teachers: how many there are.
        views: how many views of each sample a batch holds.
        sizes: of the joined batches: of two processes, 4 and 4, 4 and 3, 1 and none samples.
    """

    make: Callable[[], DistillLoss]
    width: int = 3
    teachers: int = 1
    views: int = 1
    sizes: tuple[int, ...] = SIZES


METHODS: dict[str, Method] = {
    "ofd": Method(partial(OFD, ["preact"], ["norm"])),
    "ofd without norms": Method(partial(OFD, ["preact", "map"], None)),
    "ab": Method(partial(AB, ["preact", "map"])),
    # Batch norm of vectors has no statistics of its own for a batch of one sample.
    "reviewkd": Method(
        partial(
            ReviewKD,
            ["stage", "map", "penultimate"],
            ["preact", "map", "penultimate"],
        ),
        sizes=(8, 7, 8),
    ),
    "simkd": Method(SimKD),
    "srrl": Method(SRRL),
    "ickd": Method(ICKD),
    "ickd paper": Method(partial(ICKD, convention="paper")),
    "catkd": Method(CATKD),
    "fsp": Method(partial(FSP, ["preact", "map"]), width=4),
    "fsp benchmark": Method(partial(FSP, ["preact", "map"], "benchmark"), width=4),
    "pad": Method(PAD, sizes=(8, 7, 8)),
    "pad of one width": Method(PAD, width=4, sizes=(8, 7, 8)),
    "pad plain": Method(partial(PAD, adaptive=False)),
    "multiteacher": Method(MultiTeacher, teachers=2),
    "multiteacher entropy": Method(lambda: MultiTeacher(EntropyWeights()), teachers=2),
    "multiteacher confidence": Method(
        lambda: MultiTeacher(ConfidenceWeights()), teachers=2
    ),
    "multiteacher learned": Method(lambda: MultiTeacher(LearnedWeights()), teachers=2),
    "sdd": Method(SDD),
    "sdd dkd": Method(partial(SDD, divergence="dkd")),
    "wkdf": Method(WKDF),
    "wkdf cells": Method(partial(WKDF, grid=2)),
    "ofa": Method(partial(OFA, ["preact", "map"], exponent=1.5)),
    "byot": Method(partial(BYOT, ["preact", "stage"], hints=0.1)),
    "camkd": Method(partial(CAMKD, 2), teachers=2),
    "camkd of one": Method(CAMKD),
    "featurecosine": Method(FeatureCosine),
    "seed": Method(partial(SEED, size=10, teacher_temperature=0.1)),
    "sskd": Method(SSKD, views=4),
    "sskd selection": Method(partial(SSKD, keep_transformed=0.5), views=4),
    "sskd head": Method(partial(SSKD, stage="head"), views=4),
}


class Maps(nn.Module):
    """Two convolutions and a classifier; a teacher has batch norm, and a student has none.

    Statistics of the student's own batches would differ between one process and two.
    """

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width, CLASSES)
        if isinstance(self.norm, nn.BatchNorm2d):
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Output:
        preact = self.norm(self.first(x))
        stage = preact.relu()
        last = self.second(stage).relu()
        pooled = last.mean((2, 3))
        features = {
            "preact": preact,
            "stage": stage,
            "map": last,
            "penultimate": pooled,
        }
        return Output(self.head(pooled), features)

    @property
    def modules_by_role(self) -> dict[str, nn.Module]:
        return {"norm": self.norm, "head": self.head}


def taught(teachers: list[Maps], x: Tensor) -> Output:
    """The output of a teacher, or of an ensemble with its members' features by number."""
    outputs: list[Output] = [teacher(x) for teacher in teachers]
    if len(outputs) == 1:
        return outputs[0]
    features = {}
    for number, output in enumerate(outputs):
        for role, feature in output.features.items():
            features[f"{number}.{role}"] = feature
    members = torch.stack([output.logits for output in outputs], 1)
    weights = members.new_full((len(outputs),), 1 / len(outputs))
    logits = mean_log_probs(members, weights)
    return EnsembleOutput(logits, features, members=members, weights=weights)


def modules_of(teachers: list[Maps]) -> dict[str, nn.Module]:
    if len(teachers) == 1:
        return teachers[0].modules_by_role
    modules = {}
    for number, teacher in enumerate(teachers):
        for role, module in teacher.modules_by_role.items():
            modules[f"{number}.{role}"] = module
    return modules


def turned(batch: Batch, views: int) -> Batch:
    """Every sample in several rotations, of which the first alone has a label."""
    if views == 1:
        return batch
    shown = []
    for view in range(views):
        inputs = batch.inputs
        assert isinstance(inputs, Tensor)
        target = batch.target if view == 0 else batch.target * 0 + UNLABELLED
        shown.append(replace(batch, inputs=inputs.rot90(view, (2, 3)), target=target))
    joined = join_batches(shown, tuple(range(views)))
    return replace(joined, placeholder=batch.placeholder)


def train(method: Method, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """Steps of gradient descent as the module and DDP take them; every loss, gradient and parameter, by name."""
    torch.manual_seed(0)
    student = Maps(method.width, norm=False)
    teachers = [Maps(width, norm=True) for width in (4, 5)[: method.teachers]]
    for teacher in teachers:
        teacher.eval()
    loss = method.make()
    blank = torch.zeros(2, 1, 6, 6)
    loss.build(
        Probe(student(blank), modules=student.modules_by_role),
        Probe(taught(teachers, blank), modules=modules_of(teachers)),
    )
    for module in (student, *teachers, loss):
        module.double()
    if world_size > 1:
        loss = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    named = {**dict(student.named_parameters()), **dict(loss.named_parameters())}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    seen: dict[str, Tensor] = {}
    order = torch.randperm(ROWS)
    for step, size in enumerate(method.sizes):
        index, order = order[:size], order[size:]
        target = torch.where(index % 7 == 0, UNLABELLED, index % CLASSES)
        inputs = torch.randn(size, 1, 6, 6, dtype=torch.float64)
        batch = share(Batch(inputs, target, index), rank, world_size)
        batch = turned(batch, method.views)
        assert isinstance(batch.inputs, Tensor)
        # CAMKD compares features from the second epoch on; `scaled` begins the first.
        loss.on_epoch_start(1)
        value = loss(student(batch.inputs), taught(teachers, batch.inputs), batch)
        if world_size > 1:
            value = scaled(loss, value, batch, world_size)
        gradients = torch.autograd.grad(
            value, list(trained.values()), allow_unused=True, materialize_grads=True
        )
        # One collective call instead of one per tensor: DDP's mean of gradients, and the module's
        # of losses.
        parts = [value.detach(), *gradients]
        flat = torch.cat([part.flatten() for part in parts])
        if world_size > 1:
            dist.all_reduce(flat)
        means = (flat / world_size).split([part.numel() for part in parts])
        names = ["loss", *trained]
        for name, part, mean in zip(names, parts, means, strict=True):
            seen[f"{step} {name}"] = mean.view_as(part).clone()
        for name, parameter in trained.items():
            parameter.data -= 0.01 * seen[f"{step} {name}"]
    if isinstance(loss, SEED):
        seen["queue"] = loss.queue
    return seen


def program(folder: Path, rank: int) -> None:
    """What one of the two processes does."""
    nn.SyncBatchNorm.forward = synchronized  # type: ignore[assignment, method-assign]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    seen = {name: train(method, rank, 2) for name, method in METHODS.items()}
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, dict[str, Tensor]]]:
    """What each of the two processes saw, by method."""
    folder = tmp_path_factory.mktemp("maps")
    command = [sys.executable, "-m", "tests.devices.test_map_losses", str(folder)]
    processes = [
        subprocess.Popen(
            [*command, str(rank)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_of_one_process(
    name: str, both: list[dict[str, dict[str, Tensor]]]
) -> None:
    one = train(METHODS[name])
    first, second = both[0][name], both[1][name]
    assert one.keys() == first.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-8, atol=1e-9, msg=key)
        assert torch.equal(first[key], second[key]), key
    assert all(one[f"{step} loss"] != 0 for step in range(2))
    assert any(bool(tensor.any()) for key, tensor in one.items() if "weight" in key)


if __name__ == "__main__":
    program(Path(sys.argv[1]), int(sys.argv[2]))
