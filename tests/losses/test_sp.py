from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses.sp import SP, similarities
from tests.losses import properties
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
from tests.reference.sp import sp

MAPS = partial(feature_case, "stage3", student=(2, 3, 3), teacher=(4, 2, 2))


@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(check: properties.Check) -> None:
    check(SP, MAPS())


def test_minimum_at_the_teacher() -> None:
    case = MAPS(teacher=(2, 3, 3))
    properties.minimum(SP, with_features(case, features(case)[1], features(case)[1]))


def test_stays_finite() -> None:
    stays_finite(SP, MAPS())


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_agrees_with_reference(rows: int, scale: float) -> None:
    case = MAPS(rows=rows, scale=scale, seed=rows)
    expected = sp(*map(rows_of, features(case)))
    assert properties.value_of(SP, case).item() == pytest.approx(
        expected, rel=1e-9, abs=1e-15
    )


def test_by_hand() -> None:
    # The student's samples are at right angles: G = I. The teacher's are the same: G = 1, rows (1, 1) / sqrt 2.
    # Squares: twice (1 - 1 / sqrt 2)^2 on the diagonal and twice 1/2 beside it, 4 - 2 sqrt 2 in all, over B^2 = 4.
    case = of_rows("stage3", [[1, 0], [0, 1]], [[1, 0], [1, 0]])
    assert properties.value_of(SP, case).item() == pytest.approx(1 - math.sqrt(0.5))


def test_one_factor_changes_nothing_one_a_sample_does() -> None:
    case = MAPS()
    value = properties.value_of(SP, case)
    for factor in (1e-3, -2.0, 1e3):
        assert_close(properties.value_of(SP, scaled(case, factor)), value)
    # A sample's factor cancels in its own row but for the diagonal, and not in the others, where it is a column.
    each = torch.arange(1.0, 7.0)[:, None, None, None]
    assert abs(properties.value_of(SP, scaled(case, each)) - value) > 0.01 * value


def test_rows_have_length_one() -> None:
    student, _ = features(MAPS())
    assert_close(similarities(student).norm(dim=1), torch.ones(6, dtype=torch.float64))
    student[2] = 0
    norms = similarities(student).norm(dim=1)
    assert norms[2] == 0
    assert_close(norms[[0, 1, 3, 4, 5]], torch.ones(5, dtype=torch.float64))


def test_all_processes_compute_the_joint_loss() -> None:
    assert SP.mean_over == "joint"


def test_trains_a_residual_network(tmp_path: Path) -> None:
    assert method("sp")["sp"].weight == 3000
    _, content = trains("sp", tmp_path)
    assert not any(key.startswith("losses.") for key in content["state_dict"])


@pytest.mark.parametrize("layer", ["", 3])
def test_bad_layer(layer: Any) -> None:
    with pytest.raises(UserError, match="SP: layer must be the role of a layer"):
        SP(layer)


def test_needs_a_teacher_and_its_features() -> None:
    case = MAPS()
    with pytest.raises(UserError, match="SP needs a teacher"):
        SP()(case.student, None, case.batch)
    with pytest.raises(UserError, match="SP: the output holds no feature 'stage2'"):
        SP("stage2")(case.student, case.teacher, case.batch)
