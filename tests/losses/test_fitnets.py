from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.fitnets import FitNets, convolution
from kd_lightning.models import CIFARResNet
from kd_lightning.weights import network_weights
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, gradients_of
from tests.reference import at
from tests.reference import fitnets as reference
from tests.training.small import copied, last, same

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
MAP = (2, 4, 2)
TEACHERS: dict[str, tuple[int, ...]] = {
    "one size": (3, 4, 2),
    "half": (2, 2, 1),
    "twice": (2, 8, 4),
    "less": (2, 3, 1),
    "more": (2, 5, 3),
    "taller and less wide": (2, 6, 1),
}
"""Shapes of a teacher's map beside the student's 2x4x2."""

variants = pytest.mark.parametrize("convention", CONVENTIONS)


def between(student: tuple[int, ...], teacher: tuple[int, ...], seed: int = 0) -> Case:
    return feature_case({"stage2": student}, {"stage2": teacher}, seed=seed)


def loss_of(convention: Convention, case: Case) -> Make:
    return made(partial(FitNets, convention=convention), case)


def resting(make: Make) -> Make:
    """In eval mode batch normalization does not look at the batch."""
    return lambda: make().eval()


def layers_of(loss: Any) -> list[nn.Module]:
    assert isinstance(loss, FitNets)
    assert isinstance(loss.regressor, nn.Sequential)
    return list(loss.regressor)


def identical(loss: Any) -> None:
    """A regressor that gives back what it is given, where it is not negative."""
    first, *rest = layers_of(loss)
    assert isinstance(first, nn.Conv2d | nn.Linear)
    first.weight = nn.Parameter(
        torch.eye(first.weight.shape[0], dtype=torch.float64).view(first.weight.shape)
    )
    if first.bias is not None:
        nn.init.zeros_(first.bias)
    for layer in rest:
        if isinstance(layer, nn.BatchNorm2d):
            layer.double().weight.data.fill_(math.sqrt(1 + layer.eps))
            layer.eval()


PROPERTIES = [
    *(check for check in properties.ALL if check is not properties.half_precision),
    partial(properties.half_precision, rtol=0.05),
    features.stays_finite,
    features.reaches_adapters,
    features.half_adapters,
]


@variants
@pytest.mark.parametrize("teacher", ["half", "twice", "taller and less wide"])
@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(
    check: properties.Check, teacher: str, convention: Convention
) -> None:
    case = between(MAP, TEACHERS[teacher])
    check(loss_of(convention, case), case)


@variants
@pytest.mark.parametrize("check", [*PROPERTIES, properties.batch_size])
def test_properties_with_vectors(
    check: properties.Check, convention: Convention
) -> None:
    case = between((6,), (4,))
    check(loss_of(convention, case), case)


@variants
def test_a_sample_counts_alike_in_every_batch(convention: Convention) -> None:
    case = between(MAP, TEACHERS["half"])
    properties.batch_size(resting(loss_of(convention, case)), case)
    if convention == "paper":
        properties.batch_size(loss_of(convention, case), case)


@variants
@pytest.mark.parametrize("shape", [(3, 4, 4), (5,)])
def test_minimum_where_the_regressor_gives_the_hint(
    shape: tuple[int, ...], convention: Convention
) -> None:
    case = between(shape, shape)
    best = properties.change(case.teacher, torch.abs)
    properties.minimum(
        made(partial(FitNets, convention=convention), case, identical),
        Case(best, best, case.batch),
    )


def regressed(loss: FitNets, case: Case) -> list[reference.Maps]:
    """The reference's regressor with the numbers of a loss."""
    first, *rest = layers_of(loss)
    student = case.student.features["stage2"].tolist()
    assert isinstance(first, nn.Conv2d | nn.ConvTranspose2d)
    bias = [0.0] * first.out_channels if first.bias is None else first.bias.tolist()
    apply = (
        reference.spread
        if isinstance(first, nn.ConvTranspose2d)
        else reference.convolved
    )
    assert isinstance(first.padding[0], int)
    numbers = (first.weight.tolist(), bias, first.stride[0], first.padding[0])
    maps = [apply(sample, *numbers) for sample in student]
    if any(isinstance(layer, nn.BatchNorm2d) for layer in rest):
        maps = reference.batch_normalized(maps)
    return [reference.rectified(sample) for sample in maps] if loss.relu else maps


def brought_down(sample: reference.Maps, size: tuple[int, int]) -> reference.Maps:
    return [at.averaged_down(channel, *size) for channel in sample]


@variants
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_agrees_with_reference(
    teacher: str, relu: bool, convention: Convention
) -> None:
    formula = {"paper": reference.paper, "benchmark": reference.benchmark}[convention]
    case = between(MAP, TEACHERS[teacher])
    loss = made(partial(FitNets, convention=convention, relu=relu), case)().double()
    assert isinstance(loss, FitNets)
    maps, hints = regressed(loss, case), case.teacher.features["stage2"].tolist()
    size = at.smaller(maps[0][0], hints[0][0])
    expected = formula(
        [brought_down(m, size) for m in maps], [brought_down(h, size) for h in hints]
    )
    assert loss(case.student, case.teacher, case.batch).item() == pytest.approx(
        expected, rel=1e-9
    )


# The regressor 2 x makes of (0.5, -1, 1) the map (1, -2, 2), with ReLU (1, 0, 2); the hint is (2, 2, 2): squares 1, 4, 0.
# Half their sum is 2.5; the mean of three is 5/3. The second sample agrees, and halves both.
@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 1.25), ("benchmark", 5 / 6)]
)
def test_by_hand(convention: Convention, expected: float) -> None:
    def doubling(loss: Any) -> None:
        identical(loss)
        (first, *_) = layers_of(loss)
        assert isinstance(first, nn.Conv2d)
        first.weight.data *= 2

    case = case_of(
        [[[[0.5, -1.0, 1.0]]], [[[1.0, 1.0, 1.0]]]],
        [[[[2.0, 2.0, 2.0]]], [[[2.0, 2.0, 2.0]]]],
    )
    value, (_, gradient) = gradients_of(
        made(partial(FitNets, convention=convention), case, doubling), case
    )
    assert value.item() == pytest.approx(expected)
    # Paper: 2 (r - u) over two samples is -1 in the first place, and 0 behind a closed ReLU. The benchmark's is 2/3 of it.
    scale = 1.0 if convention == "paper" else 2 / 3
    assert gradient.flatten().tolist() == pytest.approx(
        [-scale, 0.0, 0.0, 0.0, 0.0, 0.0]
    )


@pytest.mark.parametrize(
    ("convention", "student", "teacher", "kind", "kernel", "stride"),
    [
        ("paper", (8, 8), (8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ("paper", (8, 8), (4, 4), nn.Conv2d, (5, 5), (1, 1)),
        ("paper", (4, 4), (8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ("benchmark", (8, 8), (8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ("benchmark", (8, 8), (4, 4), nn.Conv2d, (3, 3), (2, 2)),
        ("benchmark", (8, 8), (5, 6), nn.Conv2d, (4, 3), (1, 1)),
        ("benchmark", (4, 4), (8, 8), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ("benchmark", (4, 4), (7, 7), nn.Conv2d, (1, 1), (1, 1)),
    ],
)
def test_kernel(
    convention: Convention,
    student: tuple[int, int],
    teacher: tuple[int, int],
    kind: type[nn.Module],
    kernel: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    layer = convolution(
        torch.Size((2, 3, *student)), torch.Size((2, 5, *teacher)), convention
    )
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert type(layer) is kind
    assert layer.kernel_size == kernel
    assert layer.stride == stride
    assert (layer.bias is None) == (convention == "benchmark")
    shape = layer(torch.zeros(2, 3, *student)).shape
    fits = (
        all(s >= t for s, t in zip(student, teacher, strict=True))
        or kind is nn.ConvTranspose2d
    )
    assert shape == (2, 5, *(teacher if fits else student))


def test_layers_of_a_regressor() -> None:
    kinds = {
        convention: [
            type(layer) for layer in layers_of(loss_of(convention, between(MAP, MAP))())
        ]
        for convention in CONVENTIONS
    }
    assert kinds == {
        "paper": [nn.Conv2d, nn.ReLU],
        "benchmark": [nn.Conv2d, nn.BatchNorm2d, nn.ReLU],
    }


@variants
def test_trains_residual_networks(convention: Convention, tmp_path: Path) -> None:
    features.trains(partial(FitNets, convention=convention, weight=1e-3), tmp_path)


def test_layers_of_different_roles(tmp_path: Path) -> None:
    loss = FitNets("stage1", "stage3")
    assert (loss.student_roles, loss.teacher_roles) == ({"stage1"}, {"stage3"})
    module = features.residual(loss)
    first = layers_of(module.losses["own"])[0]
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.out_channels, first.kernel_size) == (
        16,
        128,
        (7, 7),
    )  # 8x8 to 2x2
    features.fitted(module)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("fitnets", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 100 * run.metrics["train_loss_fitnets"], rel=1e-5
    )
    assert [type(layer) for layer in layers_of(run.module.losses["fitnets"])] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
    ]
    content = features.checkpoint_of(run)
    assert "losses.fitnets.regressor.1.running_mean" in content["state_dict"]
    assert same(network_weights(content), copied(run.module.net))


def test_two_stages(tmp_path: Path) -> None:
    """The hint alone, then KD from there: two runs joined by `init_from`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = dict(
            CIFARResNet(8, input_shape=[1, 8, 8], num_classes=10).named_parameters()
        )
    hint = features.run_method("fitnets_hint", tmp_path / "hint")
    (loss,) = hint.module.losses.values()
    assert isinstance(loss, FitNets)
    assert loss.convention == "paper"
    assert hint.metrics["train_loss"] == pytest.approx(
        0.001 * hint.metrics["train_loss_fitnets_hint"]
    )
    learned = dict(hint.module.net.named_parameters())
    changed = {
        name.partition(".")[0]
        for name, p in learned.items()
        if not torch.equal(p, start[name])
    }
    assert changed == {
        "conv",
        "bn",
        "stage1",
        "stage2",
    }  # and nothing behind the guided layer

    small = "--model.optimizer.init_args.lr=1.0e-5"
    kd = features.run_method(
        "kd", tmp_path / "kd", f"--model.init_from={last(hint)}", small
    )
    assert set(kd.module.losses) == {"ce", "kd"}
    went_on = dict(kd.module.net.named_parameters())
    assert not torch.equal(went_on["head.weight"], learned["head.weight"])
    name = "stage2.0.conv1.weight"
    assert (went_on[name] - learned[name]).norm() < 0.1 * (
        start[name] - learned[name]
    ).norm()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"student_layer": ""}, "FitNets: student_layer must be the role of a layer"),
        (
            {"teacher_layer": ["stage2"]},
            "FitNets: teacher_layer must be the role of a layer",
        ),
        (
            {"convention": "joint"},
            "FitNets: convention must be 'paper' or 'benchmark', got 'joint'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FitNets(**arguments)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (3, 4),
            (3, 4),
            r"FitNets reads vectors \(B, C\) or maps \(B, C, H, W\); the student's layer 'stage2' gives \[3, 4\]",
        ),
        (
            (3, 2, 2),
            (4,),
            r"shape \[3, 2, 2\] and \[4\] per sample; name two maps or two vectors",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    case = between(student, teacher)
    with pytest.raises(UserError, match=words):
        FitNets().build(features.probe(case.student), features.probe(case.teacher))


def test_needs_a_teacher_and_build() -> None:
    case = between(MAP, MAP)
    with pytest.raises(UserError, match="FitNets needs a teacher"):
        FitNets().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="FitNets needs a teacher"):
        FitNets()(case.student, None, case.batch)
    with pytest.raises(UserError, match="FitNets has no regressor yet"):
        FitNets()(case.student, case.teacher, case.batch)
