"""Parameter groups, the warm-up schedule, and when schedulers move."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
)

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import CrossEntropy, FitNets
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule
from kd_lightning.training.optimizers import optimize
from kd_lightning.training.parameter_groups import ParameterGroup
from kd_lightning.training.schedulers import WarmupCosineLR
from tests.training.small import complaint, distillation, mlp, shaky, trainer

ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


class Rates(pl.Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def groups_of(module: pl.LightningModule) -> list[dict[str, Any]]:
    run = trainer(limit_train_batches=1)
    run.fit(module, datamodule=DigitsDataModule())
    return run.optimizers[0].param_groups


def names_of(module: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {
        name for name, parameter in module.named_parameters() if id(parameter) in wanted
    }


def test_no_decay_on_biases_and_norms() -> None:
    network = shaky()
    group = ParameterGroup(kinds=["bias", "norm"], weight_decay=0.0)
    module = ClassifierModule(network, optimizer=ADAMW, parameter_groups=[group])
    decayed, free = groups_of(module)
    assert names_of(network, decayed["params"]) == {"1.weight", "5.weight"}
    assert names_of(network, free["params"]) == {
        "1.bias",
        "2.weight",
        "2.bias",
        "5.bias",
    }
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert (decayed["lr"], free["lr"]) == (0.01, 0.01)


def test_another_rate_for_adapters_and_named_layers() -> None:
    layers = {"first": "body.0"}
    losses: dict[str, Any] = {"ce": CrossEntropy(), "hint": FitNets("first", "first")}
    groups = [
        ParameterGroup(kinds=["losses"], lr=0.2),
        ParameterGroup(names=["student.body.1.*"], lr=0.3),
    ]
    teacher = ModelTeacher(network=mlp(32), layers=layers)
    module = distillation(
        losses, teacher=teacher, layers=layers, optimizer=ADAMW, parameter_groups=groups
    )
    rest, adapters, named = groups_of(module)
    assert [group["lr"] for group in (rest, adapters, named)] == [0.01, 0.2, 0.3]
    assert names_of(module.losses, adapters["params"])
    assert names_of(module.net, named["params"]) == {"body.1.weight", "body.1.bias"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr": 0.1}, "each group needs kinds or names"),
        ({"kinds": ["bias"]}, "each group needs lr or weight_decay"),
        ({"kinds": ["bias"], "lr": -1.0}, "lr must be a number of at least 0"),
        (
            {"names": ["a"], "weight_decay": float("nan")},
            "weight_decay must be a number",
        ),
    ],
)
def test_wrong_groups(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint(lambda: ParameterGroup(**options))


def test_a_group_that_matches_nothing() -> None:
    group = ParameterGroup(names=["studnet.*"], lr=0.1)
    module = ClassifierModule(mlp(), parameter_groups=[group])
    message = complaint(lambda: groups_of(module))
    assert "no parameter is left for ['studnet.*']" in message
    assert "network.body.1.weight" in message


def test_a_schedule_with_one_peak_would_override_the_rates_of_groups() -> None:
    group = ParameterGroup(kinds=["bias"], lr=0.1)
    module = ClassifierModule(
        mlp(), scheduler=partial(OneCycleLR, max_lr=0.1), parameter_groups=[group]
    )
    assert "give max_lr as a list of 2 rates" in complaint(lambda: groups_of(module))
    module = ClassifierModule(
        mlp(),
        scheduler=partial(OneCycleLR, max_lr=[0.1, 0.2]),
        parameter_groups=[group],
    )
    assert [group["max_lr"] for group in groups_of(module)] == [0.1, 0.2]


def test_warmup_is_torchs_own_sequence() -> None:
    """Against SequentialLR of LinearLR and CosineAnnealingLR."""
    total, warm = 40, 10
    ours, theirs = (
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3) for _ in range(2)
    )
    own = WarmupCosineLR(
        ours, total, warmup=warm / total, start_factor=0.1, final_factor=0.02
    )
    reference = SequentialLR(
        theirs,
        [
            LinearLR(theirs, start_factor=0.1, total_iters=warm),
            CosineAnnealingLR(theirs, total - warm, eta_min=0.02 * 0.3),
        ],
        milestones=[warm],
    )
    rates = []
    expected = []
    for _ in range(total):
        rates.append(ours.param_groups[0]["lr"])
        expected.append(theirs.param_groups[0]["lr"])
        for optimizer, scheduler in ((ours, own), (theirs, reference)):
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx(expected)
    assert max(rates) == pytest.approx(0.3)


def test_warmup_moves_with_every_step() -> None:
    rates = Rates()
    schedule = partial(WarmupCosineLR, warmup=0.25)
    run = trainer(max_epochs=2, limit_train_batches=4, callbacks=[rates])
    run.fit(ClassifierModule(mlp(), scheduler=schedule), datamodule=DigitsDataModule())
    assert len(set(rates.rates)) == 8
    assert max(rates.rates) == rates.rates[2] == pytest.approx(0.05)


def test_plateau_moves_after_validation() -> None:
    rates = Rates()
    schedule: Any = partial(
        ReduceLROnPlateau, monitor="val_nll", patience=0, threshold=1e9
    )
    run = trainer(max_epochs=3, limit_train_batches=1, callbacks=[rates])
    run.fit(ClassifierModule(mlp(), scheduler=schedule), datamodule=DigitsDataModule())
    assert rates.rates == pytest.approx([0.05, 0.005, 0.0005])


def test_plateau_without_a_monitor() -> None:
    schedule: Any = torch.optim.lr_scheduler.ReduceLROnPlateau
    weight = nn.Parameter(torch.zeros(1))
    message = complaint(lambda: optimize(ADAMW, schedule, [weight], lambda: 1))
    assert message.startswith(
        "model.scheduler: ReduceLROnPlateau must know what to monitor"
    )
