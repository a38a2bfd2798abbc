from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.vid import VID, _Gaussian
from kd_lightning.weights import network_weights
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, gradients_of, value_of
from tests.reference import at
from tests.reference import vid as reference
from tests.training.small import copied, same

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
STUDENT: features.Shapes = {
    "stage1": (2, 3, 2),
    "stage2": (2, 1, 2),
    "penultimate": (3,),
}
TEACHER: features.Shapes = {
    "stage1": (3, 3, 2),
    "stage2": (2, 1, 2),
    "penultimate": (2,),
}
LARGER: features.Shapes = {
    "stage1": (3, 5, 1),
    "stage2": (2, 2, 3),
    "penultimate": (2,),
}

variants = pytest.mark.parametrize("convention", CONVENTIONS)
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(convention: Convention, case: Case) -> Make:
    return made(partial(VID, list(case.student.features), convention), case)


def gaussians(loss: Any) -> list[_Gaussian]:
    assert isinstance(loss, VID)
    return [gaussian for gaussian in loss.gaussians if isinstance(gaussian, _Gaussian)]


def identical(loss: Any) -> None:
    """Means that give back what they are given, where it is not negative."""
    for gaussian in gaussians(loss):
        for layer in gaussian.mean.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                matrix = torch.eye(layer.weight.shape[0])
                layer.weight = nn.Parameter(matrix.view(layer.weight.shape))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


@variants
@sizes
@pytest.mark.parametrize(
    "check",
    [
        *(check for check in properties.ALL if check is not properties.half_precision),
        partial(properties.half_precision, rtol=0.03),
        properties.batch_size,
        features.stays_finite,
        features.reaches_adapters,
        features.half_adapters,
    ],
)
def test_properties(
    check: properties.Check, teacher: features.Shapes, convention: Convention
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(convention, case), case)


@variants
def test_minimum_over_the_student_at_the_teacher(convention: Convention) -> None:
    case = feature_case(TEACHER, TEACHER)
    best = properties.change(case.teacher, torch.abs)
    # 1/2 ln 5 an element: over the elements of a sample, or in each layer its mean.
    elements = (
        sum(math.prod(shape) for shape in TEACHER.values())
        if convention == "paper"
        else len(TEACHER)
    )
    make = made(partial(VID, list(TEACHER), convention), case, identical)
    properties.minimum(
        make, Case(best, best, case.batch), elements * math.log(5) / 2, atol=1e-5
    )


def test_the_best_variance_is_the_mean_square_of_the_error() -> None:
    """For a given mean, -log of the Gaussian is smallest there: the gradient for alpha is zero, and not elsewhere."""
    case = feature_case({"stage1": (2, 3, 3)}, {"stage1": (2, 3, 3)}, rows=6)
    loss = made(partial(VID, ["stage1"]), case, identical)().double()
    (gaussian,) = gaussians(loss)
    error = case.teacher.features["stage1"] - case.student.features["stage1"].clamp(
        min=0
    )
    best = error.square().mean((0, 2, 3)) - 1e-5
    for factor, zero in ((1.0, True), (0.5, False), (2.0, False)):
        gaussian.alpha.data = torch.log(torch.expm1(factor * best))
        value: Tensor = loss(case.student, case.teacher, case.batch)
        (gradient,) = torch.autograd.grad(value, gaussian.alpha)
        assert (gradient.abs() < 1e-9).all() == zero


def expected(loss: VID, case: Case, convention: Convention) -> float:
    """The reference on the numbers of a loss."""
    formula = {"paper": reference.paper, "benchmark": reference.benchmark}[convention]
    values = []
    for role, gaussian in zip(loss.roles, gaussians(loss), strict=True):
        variance = [
            reference.softplus_variance(alpha, 1e-5)
            for alpha in gaussian.alpha.tolist()
        ]
        student, teacher = (
            case.student.features[role].tolist(),
            case.teacher.features[role].tolist(),
        )
        if isinstance(gaussian.mean, nn.Linear):
            weight, bias = gaussian.mean.weight.tolist(), gaussian.mean.bias.tolist()
            means = [
                [v + b for v, b in zip(reference.times(weight, s), bias, strict=True)]
                for s in student
            ]
            values.append(
                formula([[pair] for pair in zip(means, teacher, strict=True)], variance)
            )
            continue
        assert isinstance(gaussian.mean, nn.Sequential)
        matrices = [
            layer.weight[:, :, 0, 0].tolist()
            for layer in gaussian.mean
            if isinstance(layer, nn.Conv2d)
        ]
        samples = []
        for s, t in zip(student, teacher, strict=True):
            size = at.smaller(s[0], t[0])
            s, t = (
                [at.averaged_down(channel, *size) for channel in maps]
                for maps in (s, t)
            )
            cells = [(y, x) for y in range(size[0]) for x in range(size[1])]
            columns = [
                ([channel[y][x] for channel in s], [channel[y][x] for channel in t])
                for y, x in cells
            ]
            samples.append(
                [
                    (reference.predicted(ours, *matrices), theirs)
                    for ours, theirs in columns
                ]
            )
        values.append(formula(samples, variance))
    return math.fsum(values)


@variants
@sizes
def test_agrees_with_reference(
    teacher: features.Shapes, convention: Convention
) -> None:
    for seed in range(3):
        case = feature_case(STUDENT, teacher, seed=seed)
        loss = loss_of(convention, case)().double()
        assert isinstance(loss, VID)
        for gaussian in gaussians(
            loss
        ):  # variances of their own, so that none stands for another
            gaussian.alpha.data += torch.linspace(-6, 2, len(gaussian.alpha))
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected(loss, case, convention), rel=1e-9)


# Errors 1 and 2 with variances 1 and 4: 1/2 (1 + ln 1) + 1/2 (4/4 + ln 4) = 1 + ln 2; the second sample has no error: ln 2.
# Their mean is 1/2 + ln 2, over two elements a sample half of it.
@pytest.mark.parametrize(
    ("convention", "value"),
    [("paper", 0.5 + math.log(2)), ("benchmark", 0.25 + math.log(2) / 2)],
)
@pytest.mark.parametrize("maps", [False, True])
def test_by_hand(maps: bool, convention: Convention, value: float) -> None:
    student: list[Any] = [[3.0, 5.0], [1.0, 2.0]]
    teacher: list[Any] = [[4.0, 3.0], [1.0, 2.0]]
    if maps:
        student, teacher = (
            [[[[v]] for v in row] for row in rows] for rows in (student, teacher)
        )

    def given(loss: Any) -> None:
        identical(loss)
        gaussians(loss)[0].alpha.data = (
            torch.tensor([1.0, 4.0], dtype=torch.float64).sub(1e-5).expm1().log()
        )

    case = case_of(student, teacher)
    found, (_, gradient) = gradients_of(
        made(partial(VID, ["stage2"], convention), case, given), case
    )
    assert found.item() == pytest.approx(value)
    # (mu - t) / sigma^2 over two samples: -1 / 2 and 2 / 4 / 2; the benchmark halves them again.
    scale = 1.0 if convention == "paper" else 0.5
    assert gradient.flatten().tolist() == pytest.approx(
        [-0.5 * scale, 0.25 * scale, 0.0, 0.0]
    )


@pytest.mark.parametrize("variance", [5.0, 0.1, 2e-5, 1e4])
def test_variances_start_as_told(variance: float) -> None:
    case = feature_case({"stage1": (3, 2, 2)}, {"stage1": (4, 2, 2)})
    (gaussian,) = gaussians(made(partial(VID, ["stage1"], variance=variance), case)())
    assert gaussian.variance().tolist() == pytest.approx([variance] * 4, rel=1e-4)


def test_variances_stay_above_eps() -> None:
    case = feature_case({"stage1": (3, 2, 2)}, {"stage1": (4, 2, 2)})
    (gaussian,) = gaussians(made(partial(VID, ["stage1"], eps=1e-3), case)())
    gaussian.alpha.data.fill_(-1e4)
    assert gaussian.variance().tolist() == pytest.approx([1e-3] * 4)


@variants
def test_trains_residual_networks(convention: Convention, tmp_path: Path) -> None:
    layers = ["stage1", "stage2", "stage3", "penultimate"]
    features.trains(partial(VID, layers, convention, weight=1e-2), tmp_path)


def test_variances_train_and_are_kept(tmp_path: Path) -> None:
    """In one public port the variances are no registered parameters, and stay what they were."""
    module = features.residual(VID())
    names = [f"own.gaussians.{layer}.alpha" for layer in range(3)]
    start = copied(module.losses)
    assert set(names) <= set(start)
    fit = features.fitted(module, max_steps=1)
    assert fit.global_step == 1
    after = copied(module.losses)
    assert all((after[name] != start[name]).all() for name in names)
    fit.save_checkpoint(tmp_path / "one.ckpt")
    kept = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[f"losses.{name}"], after[name]) for name in names)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("vid", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_vid"], rel=1e-5
    )
    loss = run.module.losses["vid"]
    assert isinstance(loss, VID)
    assert (loss.roles, loss.convention) == (
        ["stage1", "stage2", "stage3"],
        "benchmark",
    )
    assert (loss.variance, loss.eps) == (5.0, 1e-5)
    content = features.checkpoint_of(run)
    assert [
        len(content["state_dict"][f"losses.vid.gaussians.{layer}.alpha"])
        for layer in range(3)
    ] == [32, 64, 128]
    assert same(network_weights(content), copied(run.module.net))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "VID: layers must list different roles"),
        ({"convention": None}, "VID: convention must be 'paper' or 'benchmark'"),
        ({"variance": 0.0}, "VID: variance must be a finite number greater than 0"),
        ({"eps": -1.0}, "VID: eps must be a finite number greater than 0"),
        (
            {"variance": 1e-6},
            "VID: variance must be greater than eps, got 1e-06 and 1e-05",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        VID(**arguments)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (
            (3, 4),
            (3, 4),
            r"VID reads vectors \(B, C\) or maps \(B, C, H, W\); the student's layer 'a' gives \[3, 4\] per sample",
        ),
        (
            (3,),
            (4, 2, 2),
            r"shape \[3\] and \[4, 2, 2\] per sample; name two maps or two vectors",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    case = feature_case({"a": student}, {"a": teacher})
    with pytest.raises(UserError, match=words):
        VID(["a"]).build(features.probe(case.student), features.probe(case.teacher))


def test_needs_a_teacher_and_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="VID needs a teacher"):
        VID().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="VID needs a teacher"):
        VID()(case.student, None, case.batch)
    with pytest.raises(UserError, match="VID has no means and variances yet"):
        VID(list(STUDENT))(case.student, case.teacher, case.batch)
    assert value_of(loss_of("paper", case), case).isfinite()
