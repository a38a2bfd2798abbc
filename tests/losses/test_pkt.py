from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses.pkt import PKT, neighbors
from tests.losses import properties, sheet
from tests.losses.relations import (
    PROPERTIES,
    feature_case,
    features,
    method,
    of_rows,
    rows_of,
    scaled,
    stays_finite,
    trains,
    with_features,
)
from tests.reference.pkt import pkt

CASE = partial(feature_case, "penultimate")
conventions = pytest.mark.parametrize("convention", get_args(Convention))


@conventions
@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(check: properties.Check, convention: Convention) -> None:
    check(partial(PKT, convention=convention), CASE())


@conventions
def test_minimum_at_the_teacher(convention: Convention) -> None:
    case = CASE()
    best = with_features(case, features(case)[1], features(case)[1])
    properties.minimum(partial(PKT, convention=convention), best)


@conventions
def test_stays_finite(convention: Convention) -> None:
    stays_finite(partial(PKT, convention=convention), CASE())


@conventions
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_agrees_with_reference(rows: int, scale: float, convention: Convention) -> None:
    case = CASE(rows, student=(2, 2, 2), teacher=(5,), scale=scale, seed=rows)
    ours, theirs = map(rows_of, features(case))
    value = properties.value_of(partial(PKT, convention=convention), case).item()
    benchmark = convention == "benchmark"
    assert value == pytest.approx(pkt(ours, theirs, benchmark), rel=1e-9, abs=1e-15)
    # The authors' code adds a small number to each probability.
    assert value == pytest.approx(
        pkt(ours, theirs, benchmark, added=1e-7), rel=1e-5, abs=1e-9
    )


def test_value_of_the_sheet() -> None:
    case = of_rows("penultimate", sheet.STUDENT_ROWS, sheet.TEACHER_ROWS)
    value = properties.value_of(partial(PKT, convention="benchmark"), case).item()
    assert value == pytest.approx(0.011045, abs=1e-6)


# The student's samples are at right angles: similarities of 1/2 to each other, and 1 to themselves.
# Two of the teacher's are equal, and at right angles to the third.
# Paper: rows (1/2, 1/2) without the diagonal; the teacher's are (2/3, 1/3) twice and (1/2, 1/2).
# Benchmark: rows (1/2, 1/4, 1/4); the teacher's are (2/5, 2/5, 1/5) twice and equal the third.
PAPER = 2 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
BENCHMARK = 2 * (3 / 5 * math.log(4 / 5) + 2 / 5 * math.log(8 / 5)) / 9


@pytest.mark.parametrize(
    ("convention", "expected"), [("paper", PAPER), ("benchmark", BENCHMARK)]
)
def test_by_hand(convention: Convention, expected: float) -> None:
    case = of_rows(
        "penultimate", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[2, 0], [1, 0], [0, 1]]
    )
    value = properties.value_of(partial(PKT, convention=convention), case)
    assert value.item() == pytest.approx(expected)


@conventions
def test_rows_are_distributions(convention: Convention) -> None:
    student, _ = features(CASE())
    found = neighbors(student, convention)
    assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert bool(found.diagonal().any()) == (convention == "benchmark")


@conventions
def test_rounding_makes_no_probability_negative(convention: Convention) -> None:
    """Cosines of opposite samples, in single precision, are at times a little below -1."""
    some = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    assert neighbors(torch.cat([some, -some]), convention).min() >= 0


@conventions
def test_a_positive_factor_a_sample_changes_nothing(convention: Convention) -> None:
    case, make = CASE(), partial(PKT, convention=convention)
    each = torch.arange(1.0, 7.0)[:, None]
    assert_close(
        properties.value_of(make, scaled(case, each)), properties.value_of(make, case)
    )


def test_the_benchmarks_value_is_halved_where_each_sample_comes_twice() -> None:
    """A declared exception to invariance: the mean over B^2 entries is that over B rows, divided by B."""
    case, make = CASE(), partial(PKT, convention="benchmark")
    twice = properties.select(case, torch.arange(6).repeat(2))
    assert_close(properties.value_of(make, twice), properties.value_of(make, case) / 2)


@conventions
def test_opposite_samples_have_a_finite_cost(convention: Convention) -> None:
    """The student's two have no neighbor: a probability of zero, which counts as 1e-7."""
    case = of_rows("penultimate", [[1, 0], [-3, 0]], [[1, 0], [1, 1]])
    value, gradients = properties.gradients_of(
        partial(PKT, convention=convention), case
    )
    assert 0 < value < 2 * math.log(1e7) + 1e-9
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_one_sample_costs_nothing() -> None:
    for convention in get_args(Convention):
        value, gradients = properties.gradients_of(
            partial(PKT, convention=convention), CASE(1)
        )
        assert value == 0
        assert not any(gradient.any() for gradient in gradients)


def test_all_processes_compute_the_joint_loss() -> None:
    assert PKT.mean_over == "joint"


def test_trains_a_residual_network(tmp_path: Path) -> None:
    loss = method("pkt")["pkt"]
    assert isinstance(loss, PKT)
    assert (loss.weight, loss.convention) == (30000, "benchmark")
    _, content = trains("pkt", tmp_path)
    assert not any(key.startswith("losses.") for key in content["state_dict"])


@pytest.mark.parametrize("layer", ["", 3])
def test_bad_layer(layer: Any) -> None:
    with pytest.raises(UserError, match="PKT: layer must be the role of a layer"):
        PKT(layer)


def test_bad_convention() -> None:
    with pytest.raises(
        UserError, match="PKT: convention must be 'paper' or 'benchmark'"
    ):
        PKT(convention="code")  # type: ignore[arg-type]


def test_needs_a_teacher() -> None:
    case = CASE()
    with pytest.raises(UserError, match="PKT needs a teacher"):
        PKT()(case.student, None, case.batch)
