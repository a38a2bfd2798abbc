from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses.dist import DIST
from kd_lightning.types import Batch, Output
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import dist as reference

CHECKS = [
    *properties.ALL,
    *(check for check in response.SOFT if check is not response.impossible_classes),
]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(DIST, temperature=temperature), random_case())


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(beta: float, gamma: float, temperature: float) -> None:
    for seed in range(4):
        case = random_case(rows=5, classes=4, seed=seed)
        expected = reference.dist(*logits_of(case), beta, gamma, temperature)
        value = properties.value_of(partial(DIST, beta, gamma, temperature), case)
        assert value.item() == pytest.approx(expected, rel=1e-9)


def test_known_values() -> None:
    value = partial(properties.value_of, case=example())
    assert value(partial(DIST, 1.0, 0.0, 1.0)).item() == pytest.approx(
        0.096872, abs=1e-6
    )
    # Two samples: each column correlates by 1 or -1. The columns' distances are 0, 0 and 2.
    assert value(partial(DIST, 0.0, 1.0, 1.0)).item() == pytest.approx(2 / 3)


def test_by_hand() -> None:
    # Two classes: centered probabilities are (a, -a). Opposite opinions correlate by -1 in a row;
    # in a column too, for the teacher prefers the sample that the student does not.
    case = case_of([[1, -1], [-1, 1]], [[-2, 2], [3, -3]])
    assert properties.value_of(
        partial(DIST, 1.0, 0.0, 1.0), case
    ).item() == pytest.approx(2.0)
    assert properties.value_of(
        partial(DIST, 0.0, 1.0, 1.0), case
    ).item() == pytest.approx(2.0)
    # T^2 multiplies both.
    assert properties.value_of(
        partial(DIST, 1.0, 1.0, 3.0), case
    ).item() == pytest.approx(36.0)


def test_affine_maps_of_rows_cost_nothing() -> None:
    case = random_case()
    p = case.teacher.log_probs().exp()
    factor = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)[:, None]
    flattened = factor * p + (1 - factor) / 5
    student = Output(flattened.log())
    value, (gradient,) = properties.gradients_of(
        partial(DIST, 1.0, 0.0, 1.0), replace(case, student=student)
    )
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    assert properties.value_of(DIST, replace(case, student=student)) > 1e-3


def test_a_constant_side_costs_one() -> None:
    """A batch of one sample has no correlation within classes; nor has a uniform row."""
    alone = properties.select(random_case(), torch.tensor([2]))
    same = replace(alone, student=alone.teacher)
    value, (gradient,) = properties.gradients_of(partial(DIST, 1.0, 1.0, 1.0), same)
    assert value.item() == pytest.approx(1.0)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    uniform = case_of([[0, 0, 0]], [[3, 2, 1]])
    assert properties.value_of(
        partial(DIST, 1.0, 0.0, 1.0), uniform
    ).item() == pytest.approx(1.0)


def test_columns_depend_on_the_batch() -> None:
    """The declared exception: halves do not cost their mean, and classes ruled out count."""
    case = random_case()
    halves = [properties.select(case, rows) for rows in torch.arange(6).chunk(2)]
    make = partial(DIST, 0.0, 1.0, 1.0)
    mean = sum(properties.value_of(make, half).item() for half in halves) / 2
    assert properties.value_of(make, case).item() != pytest.approx(mean, rel=1e-3)
    wide = properties.both(case, lambda x: torch.cat([x, torch.full_like(x, -1e4)], 1))
    # Half of the classes has the distance of before, and half has 1.
    expected = (properties.value_of(make, case).item() + 1) / 2
    assert properties.value_of(make, wide).item() == pytest.approx(expected)
    assert DIST.mean_over == "joint"


def test_positions_are_rows() -> None:
    """Two images of three pixels, one of which is void, are five samples."""
    case = random_case(rows=5)
    target = torch.zeros(2, 3, dtype=torch.int64)
    positions = torch.tensor([0, 1, 2, 3, 5])
    batch = Batch(torch.zeros(2, 1), target, torch.arange(2), positions=positions)
    dense = Case(case.student, case.teacher, batch)
    assert torch.equal(
        properties.value_of(DIST, dense), properties.value_of(DIST, case)
    )


def test_the_shipped_method_is_the_authors() -> None:
    losses = response.shipped("dist")
    dist = losses["dist"]
    assert isinstance(dist, DIST)
    assert (dist.weight, dist.beta, dist.gamma, dist.temperature) == (
        2.0,
        1.0,
        1.0,
        4.0,
    )
    assert losses["ce"].weight == 1.0


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), "2", True])
def test_bad_weights(name: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"DIST: {name} must be a finite number of at least 0"
    ):
        DIST(**{name: value})


def test_bad_temperature() -> None:
    with pytest.raises(
        UserError, match="DIST: temperature must be a finite number greater than 0"
    ):
        DIST(temperature=0)


def test_defaults() -> None:
    loss = DIST()
    assert loss.beta == 1.0
    assert loss.gamma == 1.0
    assert loss.temperature == 4.0
