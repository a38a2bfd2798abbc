from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_lightning.errors import UserError
from kd_lightning.losses import rkd as module
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.rkd import RKD, angle_loss, distance_loss, distance_potential
from tests.losses import properties
from tests.losses.relations import (
    PROPERTIES,
    feature_case,
    features,
    method,
    of_rows,
    rows_of,
    stays_finite,
    trains,
    with_features,
)
from tests.reference.rkd import rkd, rkd_angle, rkd_distance

CASE = partial(feature_case, "penultimate")
conventions = pytest.mark.parametrize("convention", get_args(Convention))


@conventions
@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(check: properties.Check, convention: Convention) -> None:
    check(partial(RKD, convention=convention), CASE())


@conventions
def test_minimum_at_the_teacher(convention: Convention) -> None:
    case = CASE()
    properties.minimum(
        partial(RKD, convention=convention),
        with_features(case, features(case)[1], features(case)[1]),
    )


def test_stays_finite() -> None:
    stays_finite(RKD, CASE())


@conventions
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_agrees_with_reference(rows: int, scale: float, convention: Convention) -> None:
    case = CASE(rows, student=(2, 2, 2), teacher=(5,), scale=scale, seed=rows)
    ours, theirs = map(rows_of, features(case))
    expected = rkd(ours, theirs, convention == "benchmark")
    assert properties.value_of(
        partial(RKD, convention=convention), case
    ).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@conventions
def test_agrees_with_reference_where_samples_coincide(convention: Convention) -> None:
    student, teacher = (x.clone() for x in features(CASE()))
    student[1], teacher[4] = student[0], teacher[2]
    ours, theirs, benchmark = (
        rows_of(student),
        rows_of(teacher),
        convention == "benchmark",
    )
    assert distance_loss(student, teacher, convention).item() == pytest.approx(
        rkd_distance(ours, theirs, benchmark)
    )
    assert angle_loss(student, teacher, convention).item() == pytest.approx(
        rkd_angle(ours, theirs, benchmark)
    )


# The student's three samples are a triangle of equal sides, the teacher's lie at 0, 1 and 2 on a line.
# Distances over their mean: 1, 1, 1 and 3/4, 3/4, 3/2. Costs 1/32, 1/32, 1/8: 3/16 over 3 pairs, or twice that over 9 entries.
# Cosines: 1/2 at each vertex, and 1, -1, 1. Costs 1/8, 1, 1/8: 5/4 over 3 angles, or twice that over 27 entries.
@pytest.mark.parametrize(
    ("convention", "distance", "angle"),
    [("paper", 1 / 16, 5 / 12), ("benchmark", 1 / 24, 5 / 54)],
)
def test_by_hand(convention: Convention, distance: float, angle: float) -> None:
    case = of_rows("penultimate", [[0, 0], [1, 0], [0.5, 3**0.5 / 2]], [[0], [1], [2]])
    make = partial(RKD, convention=convention)
    assert properties.value_of(partial(make, 1, 0), case).item() == pytest.approx(
        distance
    )
    assert properties.value_of(partial(make, 0, 1), case).item() == pytest.approx(angle)
    assert properties.value_of(make, case).item() == pytest.approx(
        25 * distance + 50 * angle
    )


def test_conventions_differ_by_what_they_divide_by() -> None:
    student, teacher = features(CASE(6))
    assert_close(
        distance_loss(student, teacher, "benchmark"),
        distance_loss(student, teacher) * 5 / 6,
    )
    assert_close(
        angle_loss(student, teacher, "benchmark"),
        angle_loss(student, teacher) * (5 * 4) / 36,
    )


@pytest.mark.parametrize(
    "change",
    [lambda x: 1e3 * x, lambda x: x + 5, lambda x: x.flip(1), lambda x: -1e-3 * x],
)
def test_scale_place_and_rotation_change_nothing(
    change: Callable[[Tensor], Tensor],
) -> None:
    case = CASE()
    student, teacher = features(case)
    value = properties.value_of(RKD, case)
    assert_close(
        properties.value_of(RKD, with_features(case, change(student), teacher)), value
    )
    assert_close(
        properties.value_of(RKD, with_features(case, student, change(teacher))), value
    )


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_samples(rows: int, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One pair is at the mean distance on both sides, and makes no angle: zero, and a gradient of zero."""
    for x in (features(CASE(rows))[0], torch.zeros(rows, 4, dtype=torch.float64)):
        student = properties.leaf(x)
        value = loss(student, features(CASE(rows))[1])
        # Two that coincide have no mean distance to be at: 0 beside the teacher's 1.
        expected = 0.5 if loss is distance_loss and rows == 2 and not x.any() else 0.0
        assert value.item() == pytest.approx(expected, abs=1e-12)
        value.backward()
        assert student.grad is not None
        assert_close(student.grad, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_samples_that_coincide_do_not_enter_the_mean() -> None:
    potential = distance_potential(torch.tensor([[0.0], [0.0], [3.0]]))
    assert potential.tolist() == [0.0, 1.0, 1.0]


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    elements: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.elements = max(
            [
                self.elements,
                *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor)),
            ]
        )
        return made


def test_angles_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = (
        torch.randn(
            32, 16, generator=torch.Generator().manual_seed(n), dtype=torch.float64
        )
        for n in (0, 1)
    )

    def run(kept: dict[int, int]) -> tuple[Tensor, Tensor, int]:
        def note(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        x = properties.leaf(student)
        with Largest() as largest:  # type: ignore[no-untyped-call]
            with saved_tensors_hooks(note, lambda tensor: tensor):
                value = angle_loss(x, teacher)
            value.backward()
        assert x.grad is not None
        return value.detach(), x.grad, largest.elements

    whole: dict[int, int] = {}
    parts: dict[int, int] = {}
    value, gradient, elements = run(whole)
    assert elements >= 32**3
    assert sum(whole.values()) >= 32**3
    monkeypatch.setattr(
        module, "BLOCK", 3 * 32**2
    )  # eleven blocks, the last one shorter
    value_of_parts, gradient_of_parts, elements = run(parts)
    assert elements <= 3 * 32**2
    assert sum(parts.values()) <= 32**2  # the features alone
    assert_close(value_of_parts, value)
    assert_close(gradient_of_parts, gradient)


def test_weights_leave_a_part_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "angle_loss", None)  # would fail if called
    assert properties.value_of(partial(RKD, 1.0, 0.0), CASE()) > 0


def test_trains_a_residual_network(tmp_path: Path) -> None:
    loss = method("rkd")["rkd"]
    assert isinstance(loss, RKD)
    assert (loss.weight, loss.distance_weight, loss.angle_weight) == (1, 25, 50)
    assert loss.convention == "benchmark"
    _, content = trains("rkd", tmp_path)
    assert not any(key.startswith("losses.") for key in content["state_dict"])


def test_all_processes_compute_the_joint_loss() -> None:
    assert RKD.mean_over == "joint"


@pytest.mark.parametrize(
    "weights",
    [
        (-1, 50),
        (25, -1),
        (float("nan"), 1),
        (1, float("inf")),
        ("1", 1),
        (True, 1),
        (0, 0),
    ],
)
def test_bad_weights(weights: Any) -> None:
    with pytest.raises(UserError, match="RKD: distance_weight and angle_weight"):
        RKD(*weights)


def test_bad_convention() -> None:
    with pytest.raises(
        UserError, match="RKD: convention must be 'paper' or 'benchmark'"
    ):
        RKD(convention="sum")  # type: ignore[arg-type]


def test_needs_a_teacher() -> None:
    case = CASE()
    with pytest.raises(UserError, match="RKD needs a teacher"):
        RKD()(case.student, None, case.batch)
