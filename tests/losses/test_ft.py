from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.ft import FT, Stage, factor_distance
from kd_lightning.models import CIFARResNet
from tests.losses import features, properties, sheet
from tests.losses.features import feature_case, made
from tests.losses.properties import Case, Make
from tests.reference import ft as reference
from tests.reference.at import Maps
from tests.reference.fitnets import batch_normalized, convolved, spread
from tests.training.small import last

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (4, 3, 2)}
LARGER: features.Shapes = {"map": (4, 4, 3)}

variants = pytest.mark.parametrize("convention", CONVENTIONS)
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(convention: Convention, case: Case, stage: Stage = "translator") -> Make:
    return made(partial(FT, stage=stage, convention=convention), case)


@variants
@sizes
@pytest.mark.parametrize(
    "check",
    [
        check
        for check in features.WITH_ADAPTERS
        if check is not features.reaches_adapters
    ],
)
def test_properties(
    check: properties.Check, teacher: features.Shapes, convention: Convention
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(convention, case), case)


@variants
@pytest.mark.parametrize("stage", get_args(Stage))
def test_gradients_reach_the_part_that_trains(
    stage: Stage, convention: Convention
) -> None:
    case = feature_case(STUDENT, TEACHER)
    loss: Any = loss_of(convention, case, stage)().double()
    teacher = properties.change(case.teacher, properties.leaf)
    torch.autograd.backward(loss(case.student, teacher, case.batch))
    for name, parameter in loss.named_parameters():
        trains = name.startswith(stage)
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trains, (
            name
        )
    assert all(tensor.grad is None for tensor in properties.tensors(teacher))


@variants
def test_reconstruction_is_a_mean_over_samples(convention: Convention) -> None:
    case = feature_case(STUDENT, TEACHER)
    make = loss_of(convention, case, "paraphraser")
    for check in (properties.batch_size, features.duplicated):
        check(make, case)
    for kind in (torch.zeros_like, lambda x: 1e4 * x.sign()):
        extreme = Case(case.student, properties.change(case.teacher, kind), case.batch)
        assert (
            make().double()(extreme.student, extreme.teacher, extreme.batch).isfinite()
        )


def layered(samples: list[Maps], part: Any) -> list[Maps]:
    """The reference's layers with the numbers of an encoder or decoder."""
    for layer in part:
        if isinstance(layer, nn.LeakyReLU):
            samples = [reference.leaky(sample) for sample in samples]
        elif isinstance(layer, nn.BatchNorm2d):
            samples = batch_normalized(samples)
        else:
            apply = spread if isinstance(layer, nn.ConvTranspose2d) else convolved
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            samples = [apply(sample, weight, bias, 1, 1) for sample in samples]
    return samples


@variants
@sizes
def test_agrees_with_reference(
    teacher: features.Shapes, convention: Convention
) -> None:
    paper = convention == "paper"
    case = feature_case(STUDENT, teacher)
    own, target = (
        case.student.features["map"].tolist(),
        case.teacher.features["map"].tolist(),
    )
    second: Any = loss_of(convention, case)().double()
    factors = layered(target, second.paraphraser["encoder"])
    expected = reference.distance(layered(own, second.translator), factors, paper)
    value = second(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9)
    first: Any = loss_of(convention, case, "paraphraser")().double()
    reconstructed = layered(factors, first.paraphraser["decoder"])
    value = first(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(
        reference.error(reconstructed, target, paper), rel=1e-9
    )


@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 0.324616), ("benchmark", 0.381261)]
)
def test_value_of_the_sheet(convention: Convention, expected: float) -> None:
    student, teacher = torch.tensor(sheet.STUDENT), torch.tensor(sheet.TEACHER)
    found = factor_distance(student, teacher, convention)
    assert found.item() == pytest.approx(expected, abs=1e-6)


# (3, 4) against (0, 1): units (0.6, 0.8) and (0, 1), absolute differences 0.6 and 0.2. Attention:
# (9, 16) / sqrt(337) and (0, 1).
@pytest.mark.parametrize(
    ("convention", "expected"),
    [("paper", 0.4), ("benchmark", (9 / 337**0.5 + 1 - 16 / 337**0.5) / 2)],
)
def test_by_hand(convention: Convention, expected: float) -> None:
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    assert factor_distance(student, teacher, convention).item() == pytest.approx(
        expected
    )
    assert factor_distance(7 * teacher, teacher, convention).item() == 0


def test_channels() -> None:
    case = feature_case({"map": (6, 2, 2)}, {"map": (10, 2, 2)}, rows=2)
    loss: Any = made(partial(FT, rate=0.75), case)()
    parts = (loss.paraphraser["encoder"], loss.paraphraser["decoder"], loss.translator)
    found = [
        [
            (layer.in_channels, layer.out_channels)
            for layer in part
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        ]
        for part in parts
    ]
    assert found[0] == [(10, 10), (10, 8), (8, 8)]
    assert found[1] == [(8, 8), (8, 10), (10, 10)]
    assert found[2] == [(6, 6), (6, 8), (8, 8)]


def test_two_stages(tmp_path: Path) -> None:
    """The paraphraser alone, then the translator with the student, joined by `init_from`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = CIFARResNet(8, input_shape=[1, 8, 8], num_classes=10).state_dict()
    first = features.run_method("ft_paraphraser", tmp_path / "first")
    names = [name for name, _ in first.module.net.named_parameters()]
    student = first.module.net.state_dict()
    assert all(torch.equal(student[name], start[name]) for name in names)
    learned = {k: v.clone() for k, v in first.module.losses["ft"].state_dict().items()}
    assert learned["paraphraser_steps"] == 2

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="FT: the paraphraser is random")
        second = features.run_method(
            "ft", tmp_path / "second", f"--model.init_from={last(first)}"
        )
    assert second.metrics["train_loss"] == pytest.approx(
        second.metrics["train_loss_ce"] + 500 * second.metrics["train_loss_ft"],
        rel=1e-5,
    )
    kept = features.checkpoint_of(second)["state_dict"]
    for key, value in learned.items():
        same = torch.equal(kept[f"losses.ft.{key}"], value)
        assert same == key.startswith("paraphraser"), key


def test_a_random_paraphraser_is_reported() -> None:
    case = feature_case(STUDENT, TEACHER)
    loss = loss_of("paper", case)()
    with pytest.warns(UserWarning, match="FT: the paraphraser is random"):
        loss.on_epoch_start(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "FT: layer must be the role of a layer"),
        (
            {"stage": "both"},
            "FT: stage must be 'paraphraser' or 'translator', got 'both'",
        ),
        ({"rate": 0}, "FT: rate must be a finite number greater than 0"),
        ({"convention": "code"}, "FT: convention must be 'paper' or 'benchmark'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FT(**arguments)


def test_needs_a_teacher_and_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="FT needs a teacher"):
        FT().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="FT has no adapters yet"):
        FT()(case.student, case.teacher, case.batch)
