from __future__ import annotations

import math
import pkgutil
from pathlib import Path
from typing import Any, assert_type, get_args

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from kd_lightning import losses
from kd_lightning.errors import UserError
from kd_lightning.losses import DistillLoss
from kd_lightning.losses.base import MeanOver, positive, weight_of
from kd_lightning.types import UNLABELLED, Batch
from tests.losses import exports
from tests.losses.properties import random_case

HERE = Path(__file__).parent
METHODS = HERE.parents[1] / "configs" / "methods"
STEMS = sorted(
    module.name
    for module in pkgutil.iter_modules(losses.__path__)
    if module.name[0] != "_" and module.name != "base" and not module.ispkg
)
CLASSES = {
    name: value
    for name in losses.__all__
    if isinstance(value := getattr(losses, name), type)
    and issubclass(value, DistillLoss)
    and value is not DistillLoss
}


def test_losses_are_found() -> None:
    assert {"ce", "kd", "logitmse"} <= set(STEMS)
    assert {"CrossEntropy", "KD", "LogitMSE"} <= set(CLASSES)
    assert len(losses.__all__) == len(set(losses.__all__))
    assert not hasattr(losses, "NoSuchLoss")


def test_the_stub_lists_every_loss() -> None:
    assert exports.STUB.read_text() == exports.stub(), (
        "kd_lightning/losses/__init__.pyi does not list the losses of this folder; run `make lint`"
    )


def test_losses_are_typed() -> None:
    """mypy checks these lines: were `losses.KD` of type Any, it would accept them differently."""
    assert_type(losses.KD(temperature=2.0), losses.KD)
    assert_type(losses.KD().temperature, float)
    with pytest.raises(TypeError):
        losses.KD(wieght=2.0)  # type: ignore[call-arg]
    with pytest.raises(UserError):
        losses.KD(weight="2")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLASSES)
def test_the_command_line_sees_inherited_options(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--losses", type=dict[str, DistillLoss])
    config = parser.parse_args(
        [
            f'--losses={{"own": {{"class_path": "kd_lightning.losses.{name}"}}}}',
            "--losses.own.weight=3.0",
            "--losses.own.end=7",
        ]
    )
    arguments = config.losses["own"].init_args
    assert (arguments.weight, arguments.start, arguments.end, arguments.warmup) == (
        3.0,
        0,
        7,
        0,
    )
    with pytest.raises(ArgumentError, match="wieght"):
        parser.parse_args([f"--losses.own={name}", "--losses.own.wieght=3.0"])


@pytest.mark.parametrize("stem", STEMS)
def test_every_loss_has_its_test_and_its_method_file(stem: str) -> None:
    assert (HERE / f"test_{stem}.py").is_file()
    named = (METHODS / f"{stem}.yaml").read_text()
    own = [
        name
        for name, loss in CLASSES.items()
        if loss.__module__ == f"kd_lightning.losses.{stem}"
    ]
    assert any(f"class_path: kd_lightning.losses.{name}\n" in named for name in own), (
        f"{stem}.yaml uses none of {own}"
    )


@pytest.mark.parametrize("name", CLASSES)
def test_every_loss_describes_itself(name: str) -> None:
    loss = CLASSES[name]
    assert loss.paper
    assert loss.family
    assert loss.__doc__
    assert isinstance(loss.needs, tuple)  # ("labels") is a string
    assert loss.needs
    assert all(loss.needs)
    assert loss.mean_over in get_args(MeanOver)
    assert loss.exact_logits == ("all teacher logits" in loss.needs)
    assert loss.uses_teacher == any("teacher" in need for need in loss.needs)
    # Losses on outputs refuse real values, besides the one that compares values as they are.
    is_on_classes = loss.family == "response" or name in ("CrossEntropy", "SSKD")
    assert loss.compares_classes == (is_on_classes and name != "LogitMSE")
    # The soft terms of BYOT, whose teacher is the network, count samples without labels, too.
    if "labels" in loss.needs and not loss.uses_teacher and name != "BYOT":
        assert loss.mean_over == "labelled"


def batch_of(target: Tensor, **fields: Any) -> Batch:
    return Batch(
        torch.zeros(len(target), 1), target, torch.arange(len(target)), **fields
    )


U = UNLABELLED
WEIGHTS: dict[str, tuple[Batch, dict[MeanOver, int]]] = {
    "one label per sample": (
        batch_of(torch.tensor([1, U, 0])),
        {"rows": 3, "labelled": 2, "samples": 3, "joint": 1},
    ),
    "mixed": (
        batch_of(
            torch.tensor([1, U, U, 0]),
            partner=torch.tensor([U, 2, U, 1]),
            share=torch.ones(4),
        ),
        {"rows": 4, "labelled": 3, "samples": 4, "joint": 1},
    ),
    "tokens with padding": (
        batch_of(
            torch.tensor([[1, U, 0], [2, 9, 9]]), positions=torch.tensor([0, 1, 2, 3])
        ),
        {"rows": 4, "labelled": 3, "samples": 2, "joint": 1},
    ),
    "several values": (
        batch_of(torch.tensor([[0.5, math.nan], [1.0, 2.0], [math.nan, math.nan]])),
        {"rows": 6, "labelled": 3, "samples": 3, "joint": 1},
    ),
    "placeholder": (
        batch_of(torch.tensor([1, 0]), placeholder=True),
        {"rows": 0, "labelled": 0, "samples": 0, "joint": 1},
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("mean_over", get_args(MeanOver))
def test_weight_of(name: str, mean_over: MeanOver) -> None:
    batch, expected = WEIGHTS[name]
    weight = weight_of(mean_over, batch)
    assert weight.dtype == torch.int64
    assert weight.shape == ()
    assert weight.item() == expected[mean_over]


def test_hooks_do_nothing_by_default() -> None:
    case = random_case()
    loss = losses.KD()
    assert loss.predict(case.student, case.batch) is case.student
    loss.on_epoch_start(0)
    loss.after_step()
    assert not list(loss.parameters())
    assert not list(loss.buffers())


# Each row by hand: the weights of epochs 0, 1, 2, ...
@pytest.mark.parametrize(
    ("base", "weights"),
    [
        ({}, [1, 1, 1]),
        ({"weight": 3.0}, [3, 3, 3]),
        ({"weight": 0.0}, [0, 0, 0]),
        ({"weight": 3.0, "start": 2}, [0, 0, 3, 3]),
        ({"weight": 3.0, "end": 2}, [3, 3, 0, 0]),
        ({"weight": 3.0, "start": 1, "end": 3}, [0, 3, 3, 0]),
        ({"weight": 3.0, "warmup": 1}, [3, 3]),
        ({"weight": 2.0, "warmup": 4}, [0.5, 1.0, 1.5, 2.0, 2.0]),
        (
            {"weight": 2.0, "start": 2, "end": 7, "warmup": 4},
            [0, 0, 0.5, 1.0, 1.5, 2.0, 2.0, 0, 0],
        ),
        (
            {"weight": 2.0, "start": 1, "end": 3, "warmup": 4},
            [0, 0.5, 1.0, 0],
        ),  # over before the weight is reached
    ],
)
def test_weight_at(base: dict[str, Any], weights: list[float]) -> None:
    loss = DistillLoss(**base)
    assert [loss.weight_at(epoch) for epoch in range(len(weights))] == weights


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weight(name: str, weight: float) -> None:
    with pytest.raises(
        UserError, match=f"{name}: weight must be a finite number of at least 0"
    ):
        CLASSES[name](weight=weight)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "span",
    [
        {"start": -1},
        {"warmup": -1},
        {"end": 0},
        {"end": -1},
        {"start": 2, "end": 2},
        {"start": 2, "end": 1},
    ],
)
def test_bad_span(name: str, span: dict[str, int]) -> None:
    with pytest.raises(
        UserError,
        match=f"{name}: start and warmup must be at least 0 and end after start",
    ):
        CLASSES[name](**span)


def test_weight_is_not_in_the_loss() -> None:
    """The total multiplies by weight_at; a loss that did so too would count it twice."""
    case = random_case()
    for loss in (losses.CrossEntropy, losses.KD, losses.LogitMSE):
        values = {
            loss(weight=w)(case.student, case.teacher, case.batch).item()
            for w in (0.0, 1.0, 5.0)
        }
        assert len(values) == 1


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, -math.inf, "2", True, None]
)
def test_positive_refuses(value: Any) -> None:
    with pytest.raises(
        UserError, match="Owner: name must be a finite number greater than 0"
    ) as error:
        positive("Owner", "name", value)
    assert str(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_positive_gives_a_float() -> None:
    assert isinstance(positive("Owner", "name", 2), float)
    assert positive("Owner", "name", 2) == 2.0


def test_base_is_abstract() -> None:
    case = random_case()
    with pytest.raises(NotImplementedError):
        DistillLoss()(case.student, case.teacher, case.batch)
