from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.cc import CC, congruence_loss, consecutive_loss, correlations
from tests.losses import properties, sheet
from tests.losses.features import identical_connector, made
from tests.losses.properties import Case, Make
from tests.losses.relations import (
    PROPERTIES,
    feature_case,
    features,
    gradients_of_adapters,
    method,
    of_rows,
    rows_of,
    stays_finite,
    trains,
    with_features,
)
from tests.reference import cc as reference

LAYER = "penultimate"
CASE = partial(feature_case, LAYER)
conventions = pytest.mark.parametrize("convention", get_args(Convention))
frozen = pytest.mark.parametrize("freeze_teacher", [False, True])


def loss_of(
    case: Case, prepare: Callable[[Any], object] = lambda loss: None, **options: Any
) -> Make:
    return made(partial(CC, dimensions=5, **options), case, prepare)


def same_embeddings(loss: Any) -> None:
    loss.embeddings["teacher"].load_state_dict(loss.embeddings["student"].state_dict())


def identical(loss: Any) -> None:
    """Embeddings that are the features."""
    identical_connector(loss.embeddings)


def plain(
    student: list[list[float]], teacher: list[list[float]], **options: Any
) -> float:
    """The loss of two-dimensional features that are their own embeddings."""
    case = of_rows(LAYER, student, teacher)
    make = made(partial(CC, dimensions=2, **options), case, identical)
    return properties.value_of(make, case).item()


@frozen
@conventions
@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(
    check: properties.Check, convention: Convention, freeze_teacher: bool
) -> None:
    if check is properties.batch_order and convention == "benchmark":
        pytest.skip("a declared exception: see test_the_benchmark_depends_on_the_order")
    case = CASE()
    check(loss_of(case, convention=convention, freeze_teacher=freeze_teacher), case)


@conventions
def test_minimum_at_the_teacher_under_one_embedding(convention: Convention) -> None:
    case = CASE(teacher=(4,))
    best = with_features(case, features(case)[1], features(case)[1])
    properties.minimum(loss_of(case, same_embeddings, convention=convention), best)


@conventions
def test_stays_finite(convention: Convention) -> None:
    case = CASE()
    stays_finite(loss_of(case, convention=convention), case)


def without_bias(loss: Any) -> None:
    for layer in loss.embeddings.values():
        torch.nn.init.zeros_(layer.bias)


def test_stays_finite_without_an_embedding_to_turn_to() -> None:
    """Features of zero then have embeddings of zero, without a direction."""
    case = CASE()
    stays_finite(loss_of(case, without_bias), case)


@conventions
def test_gradients_reach_the_embeddings(convention: Convention) -> None:
    case = CASE()
    learned: Any = loss_of(case, convention=convention)().double()
    gradients = gradients_of_adapters(learned, case)
    assert gradients.keys() == {
        f"embeddings.{side}.{name}"
        for side in ("student", "teacher")
        for name in ("weight", "bias")
    }
    assert all(bool(gradient.any()) for gradient in gradients.values())


@conventions
def test_a_frozen_embedding_is_kept_and_never_trains(convention: Convention) -> None:
    case = CASE()
    free: Any = loss_of(case, convention=convention)().double()
    kept: Any = loss_of(case, convention=convention, freeze_teacher=True)().double()
    gradients = gradients_of_adapters(kept, case)
    assert gradients.keys() == {"embeddings.student.weight", "embeddings.student.bias"}
    assert kept.state_dict().keys() == free.state_dict().keys()
    values = [loss(case.student, case.teacher, case.batch) for loss in (free, kept)]
    assert_close(values[0], values[1])


@conventions
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_agrees_with_reference(rows: int, scale: float, convention: Convention) -> None:
    case = CASE(rows, student=(2, 2, 2), teacher=(3,), scale=scale, seed=rows)
    loss: Any = loss_of(case, convention=convention, gamma=0.7, order=3)().double()
    sides = []
    for side, feature in zip(("student", "teacher"), features(case), strict=True):
        layer = loss.embeddings[side]
        sides.append(
            reference.embedded(
                rows_of(feature), layer.weight.tolist(), layer.bias.tolist()
            )
        )
    ours, theirs = sides
    if convention == "benchmark":
        expected = reference.benchmark(ours, theirs)
    else:
        expected = reference.paper(ours, theirs, gamma=0.7, order=3)
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", 0.034320), ("benchmark", 2.0)]
)
def test_value_of_the_sheet(convention: Convention, expected: float) -> None:
    found = plain(sheet.STUDENT_ROWS, sheet.TEACHER_ROWS, convention=convention)
    assert found == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    # The student's two samples are at right angles, the teacher's have one direction. With a cosine
    # c, the kernel is e^-0.8 (1 + 0.8 c + 0.32 c^2): two of four entries differ, by e^-0.8 * 1.12.
    found = plain([[1, 0], [0, 1]], [[1, 0], [3, 0]])
    assert found == pytest.approx(math.exp(-1.6) * 1.12**2 / 2)
    # Errors of 1, 2 and 3 in one value and none in the other: (1 * 2 + 2 * 3) / 2.
    rows = [[1.0, 5.0], [-2.0, 5.0], [3.0, 5.0]]
    assert plain([[0, 5]] * 3, rows, convention="benchmark") == pytest.approx(4)


def test_the_series_is_that_of_a_gaussian() -> None:
    embedding, _ = features(CASE())
    direction = embedding / embedding.norm(dim=1, keepdim=True)
    squares = (direction[:, None] - direction).square().sum(2)
    assert_close(correlations(embedding, 0.4, 20), (-0.4 * squares).exp())
    # What is left out after the power P = 2 is at most (2 * 0.4)^3 / 3!.
    assert_close(
        correlations(embedding, 0.4, 2), (-0.4 * squares).exp(), rtol=0, atol=0.8**3 / 6
    )


def test_the_paper_compares_directions_and_not_sizes() -> None:
    student, teacher = features(CASE())
    each = torch.arange(1.0, 7.0)[:, None]
    value = congruence_loss(student, teacher)
    assert_close(congruence_loss(each * student, teacher.flip(1)), value)
    # Each sample twice: the mean over pairs stays.
    assert_close(congruence_loss(student.repeat(2, 1), teacher.repeat(2, 1)), value)


def test_the_benchmark_depends_on_the_order() -> None:
    student, teacher = (
        torch.tensor(sheet.STUDENT_ROWS),
        torch.tensor(sheet.TEACHER_ROWS),
    )
    order = torch.tensor([1, 0, 2])
    assert consecutive_loss(student, teacher) == 2
    assert consecutive_loss(student[order], teacher[order]) == 1


@conventions
def test_one_sample_costs_nothing(convention: Convention) -> None:
    """Its kernel is that of a sample with itself; it has no neighbor in the batch."""
    case = CASE(1)
    value, gradients = properties.gradients_of(
        loss_of(case, convention=convention), case
    )
    nothing: list[Tensor] = [torch.zeros_like(gradient) for gradient in gradients]
    assert_close(value.item(), 0.0, rtol=0, atol=1e-12)
    assert_close(gradients, nothing, rtol=0, atol=1e-12)


def test_all_processes_compute_the_joint_loss() -> None:
    assert CC.mean_over == "joint"


def test_trains_a_residual_network(tmp_path: Path) -> None:
    loss = method("cc")["cc"]
    assert isinstance(loss, CC)
    assert (loss.weight, loss.dimensions, loss.convention) == (0.02, 128, "benchmark")
    trains("cc", tmp_path)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("dimensions", value) for value in (0, 1.5, True)),
        *(("order", value) for value in (0, 2.0, True)),
        *(("gamma", value) for value in (0, -1, math.inf, True)),
        ("convention", "code"),
        ("layer", ""),
    ],
)
def test_bad_arguments(argument: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"CC: {argument} must be"):
        CC(**{argument: value})


def test_needs_a_teacher_and_its_embeddings() -> None:
    case = CASE()
    with pytest.raises(UserError, match="CC needs a teacher"):
        CC().build(None, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="CC needs a teacher"):
        CC()(case.student, None, case.batch)
    with pytest.raises(UserError, match="CC has no adapters yet"):
        CC()(case.student, case.teacher, case.batch)
