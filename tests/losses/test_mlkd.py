from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses.mlkd import MLKD, gram_distance
from kd_lightning.types import Batch
from tests.losses import properties, relations, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import mlkd as reference

CHECKS = [
    *(check for check in properties.ALL if check is not properties.half_precision),
    relations.half_precision,
    *response.ALWAYS,
    response.needs_a_teacher,
    response.counts_unlabelled_rows,
    response.ensembles,
]


@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check) -> None:
    check(MLKD, random_case())


@pytest.mark.parametrize("temperatures", [(1.0,), (2.0, 3.0, 6.0)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_agrees_with_reference(
    temperatures: tuple[float, ...], weights: tuple[float, float]
) -> None:
    def expected(case: Case) -> float:
        total = 0.0
        for temperature in temperatures:
            sample, samples, classes = reference.levels(*logits_of(case), temperature)
            total += sample + weights[0] * samples + weights[1] * classes
        return total

    properties.agrees(partial(MLKD, temperatures, *weights), expected)


def test_known_values() -> None:
    value = partial(properties.value_of, case=example())
    sample = value(partial(MLKD, [4.0], 0.0, 0.0)).item()
    assert sample == pytest.approx(0.335566, abs=1e-6)
    samples = value(partial(MLKD, [4.0], 1.0, 0.0)).item() - sample
    assert samples == pytest.approx(0.000282, abs=1e-6)
    classes = value(partial(MLKD, [4.0], 0.0, 1.0)).item() - sample
    assert classes == pytest.approx(0.000896, abs=1e-6)


def test_by_hand() -> None:
    # The teacher is sure of two different classes: P P' = I. The student is sure of one: Q Q' = 1.
    # Two entries of four differ by 1: 2 / B. P'P = I and Q'Q = diag(2, 0): also 2 entries, 2 / K.
    sure = 1e3
    case = case_of([[sure, 0], [sure, 0]], [[sure, 0], [0, sure]])
    none = properties.value_of(partial(MLKD, [1.0], 0.0, 0.0), case)
    assert properties.value_of(
        partial(MLKD, [1.0], 5.0, 0.0), case
    ) - none == pytest.approx(5)
    assert properties.value_of(
        partial(MLKD, [1.0], 0.0, 7.0), case
    ) - none == pytest.approx(7)


def test_each_view_is_a_batch_of_its_own() -> None:
    case = random_case()
    view = torch.tensor([0, 4, 0, 4, 4, 0])
    two = replace(case, batch=replace(case.batch, view=view))
    parts = [
        properties.select(case, rows) for rows in torch.tensor([[0, 2, 5], [1, 3, 4]])
    ]
    expected = sum(properties.value_of(MLKD, part).item() for part in parts)
    assert properties.value_of(MLKD, two).item() == pytest.approx(expected)
    assert properties.value_of(MLKD, case).item() != pytest.approx(expected, rel=1e-3)
    # One view, said of every sample.
    one = replace(case, batch=replace(case.batch, view=torch.full((6,), 3)))
    assert torch.equal(properties.value_of(MLKD, one), properties.value_of(MLKD, case))


def test_the_batch_counts() -> None:
    """The declared exception: twice the batch doubles one level and quadruples the other."""
    case = random_case()
    q = case.student.log_probs(4.0).exp()
    p = case.teacher.log_probs(4.0).exp()
    twice_q = torch.cat([q, q])
    twice_p = torch.cat([p, p])
    assert_close(gram_distance(twice_q, twice_p), 2 * gram_distance(q, p))
    assert_close(gram_distance(twice_q.T, twice_p.T), 4 * gram_distance(q.T, p.T))
    assert MLKD.mean_over == "joint"


def test_several_views_of_positions_are_refused() -> None:
    case = random_case()
    target = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 1), target, torch.arange(2))
    assert torch.equal(
        properties.value_of(MLKD, replace(case, batch=batch)),
        properties.value_of(MLKD, case),
    )
    batch = replace(batch, view=torch.tensor([0, 1]))
    with pytest.raises(
        UserError, match="MLKD reads several views of samples with one label"
    ):
        MLKD()(case.student, case.teacher, batch)


def test_the_shipped_method_is_the_papers() -> None:
    losses = response.shipped("mlkd")
    loss = losses["mlkd"]
    assert isinstance(loss, MLKD)
    assert (loss.weight, losses["ce"].weight) == (0.9, 0.1)
    assert loss.temperatures == [2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("temperatures", [[], "2", [2.0, 0.0], [True]])
def test_bad_temperatures(temperatures: Any) -> None:
    with pytest.raises(UserError, match=r"MLKD: (each )?temperature"):
        MLKD(temperatures)


@pytest.mark.parametrize("name", ["between_samples", "between_classes"])
def test_bad_weights(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(
        UserError, match=f"MLKD: {name} must be a finite number of at least 0"
    ):
        MLKD(**options)
