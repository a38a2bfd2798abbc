"""Compiled networks train as others do: the same taps, the same checkpoint. (The compiler itself is not what is tested.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kd_lightning.losses import CrossEntropy
from kd_lightning.runs.compile import networks
from kd_lightning.teachers import EnsembleTeacher, ModelTeacher
from kd_lightning.training import DistillationModule, TrainingModule
from tests.runs import Kd, student

COMPILED = "--trainer.callbacks+={class_path: kd_lightning.runs.compile.CompileNetworks, init_args: {backend: eager}}"
FEATURES = "--model.losses.crd={class_path: kd_lightning.losses.CRD, init_args: {num_negatives: 8, dimensions: 8}}"


def test_trains_the_same_weights(
    teacher: Path, kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []
    begin = TrainingModule.on_train_epoch_start

    def note(module: TrainingModule) -> None:
        compiled.append(
            all(n._compiled_call_impl is not None for n in networks(module))
        )
        begin(module)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", note)
    layers = [
        f"--model.{side}layers={{penultimate: body}}" for side in ("", "teacher.")
    ]
    argv = [*student(teacher), FEATURES, *layers, "--model.student.dropout=0.3"]
    for name, more in (("plain", []), ("compiled", [COMPILED])):
        outcome = kd(*argv, *more, f"--run.name={name}")
        assert (outcome.code, outcome.err) == (0, "")
    assert compiled == [False, True]
    plain, other = (
        torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)[
            "state_dict"
        ]
        for name in ("plain", "compiled")
    )
    assert list(plain) == list(other)
    assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_finds_the_networks_of_all_teachers() -> None:
    nets = [nn.Linear(2, 2) for _ in range(4)]
    inner = EnsembleTeacher([ModelTeacher(network=n) for n in nets[1:3]])
    teacher = EnsembleTeacher([inner, ModelTeacher(network=nets[3])])
    module = DistillationModule(nets[0], teacher, {"ce": CrossEntropy()})
    assert {id(n) for n in networks(module)} == {id(n) for n in nets}
