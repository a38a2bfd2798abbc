from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._gather import unit
from kd_lightning.losses.seed import SEED
from tests.losses import features, properties
from tests.losses.features import checkpoint_of, feature_case, made
from tests.losses.properties import Case, Make
from tests.reference import foundation as reference

ROLE = "penultimate"
STUDENT: features.Shapes = {ROLE: (2,)}
TEACHER: features.Shapes = {ROLE: (3,)}


def loss_of(case: Case, size: int = 6, **arguments: Any) -> Make:
    """With a teacher's temperature at which several entries count."""
    settings = {"teacher_temperature": 0.1, **arguments}
    return made(partial(SEED, size=size, **settings), case)


@pytest.mark.parametrize(
    "check",
    [check for check in features.WITH_ADAPTERS if check is not features.one_sample],
)
def test_properties(check: properties.Check) -> None:
    case = feature_case(STUDENT, TEACHER)
    check(loss_of(case, size=8), case)


def steps(loss: Any, cases: list[Case]) -> list[float]:
    return [loss(case.student, case.teacher, case.batch).item() for case in cases]


def vectors(case: Case) -> list[list[float]]:
    rows: list[list[float]] = case.teacher.features[ROLE].tolist()
    return rows


def test_agrees_with_reference() -> None:
    """Three batches of four into a queue of six: the first fills it in part, the last one wraps."""
    cases = [feature_case(STUDENT, TEACHER, seed=seed) for seed in range(3)]
    loss: Any = loss_of(cases[0])().double()
    found = steps(loss, cases)
    weight = loss.projector.weight
    seen: list[list[float]] = []
    for case, value in zip(cases, found, strict=True):
        seen += vectors(case)
        own = case.student.features[ROLE] @ weight.T + loss.projector.bias
        # The order of the entries plays no part: the last six of all.
        expected = reference.queue_loss(
            own.tolist(), vectors(case), seen[-6:], 0.2, 0.1
        )
        assert value == pytest.approx(expected, rel=1e-8)
    assert loss.pushed == 12


def test_the_queue_by_hand() -> None:
    cases = [feature_case(STUDENT, TEACHER, seed=seed) for seed in range(2)]
    loss: Any = loss_of(cases[0])().double()
    first, second = (unit(case.teacher.features[ROLE]) for case in cases)
    steps(loss, cases[:1])
    empty = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(loss.queue, torch.cat([first, empty]))
    steps(loss, cases[1:])
    # Two take the empty places, and two those of the oldest.
    expected: Tensor = torch.cat([second[2:], first[2:], second[:2]])
    assert torch.equal(loss.queue, expected)
    assert not loss.queue.requires_grad


def test_evaluation_leaves_the_queue() -> None:
    case = feature_case(STUDENT, TEACHER)
    loss: Any = loss_of(case)().double().eval()
    assert steps(loss, [case])[0] > 0
    assert loss.pushed == 0
    assert not loss.queue.any()


def test_a_student_with_the_teachers_embedding_is_a_minimum() -> None:
    case = feature_case(TEACHER, TEACHER)
    make = loss_of(case, temperature=0.1)

    def identical() -> Any:
        loss: Any = make()
        loss.projector.weight.data = torch.eye(3)
        loss.projector.bias.data.zero_()
        return loss

    same = Case(case.teacher, case.teacher, case.batch)
    value, gradients = properties.gradients_of(identical, same)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(bool((gradient.abs() < 1e-9).all()) for gradient in gradients)
    assert properties.value_of(identical, case) > 0


def test_one_sample_first_costs_nothing() -> None:
    case = properties.select(feature_case(STUDENT, TEACHER), torch.arange(1))
    value, gradients = properties.gradients_of(loss_of(case), case)
    assert value == 0
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_trains_and_resumes(tmp_path: Path) -> None:
    """The queue is in the checkpoint, and a resumed run is the uninterrupted one."""
    features.trains(partial(SEED, size=40, teacher_temperature=0.1), tmp_path)


def test_trains_with_its_config(tmp_path: Path) -> None:
    run = features.run_method("seed", tmp_path, "--model.losses.seed.size=512")
    state = checkpoint_of(run)["state_dict"]
    assert state["losses.seed.pushed"] == 2 * 64
    lengths = state["losses.seed.queue"].norm(dim=1)
    torch.testing.assert_close(lengths[:128], torch.ones(128))
    assert not lengths[128:].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "SEED: layer must be the role of a layer"),
        ({"size": 0}, "SEED: size must be a whole number from 1"),
        ({"temperature": 0}, "SEED: temperature must be a finite number"),
        ({"teacher_temperature": -1}, "teacher_temperature must be a finite number"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SEED(**arguments)


def test_refusals() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="SEED needs a teacher"):
        SEED().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="SEED has no adapters yet"):
        SEED()(case.student, case.teacher, case.batch)
    with pytest.raises(UserError, match="queue of 3 is smaller than the batch of 4"):
        loss_of(case, size=3)().double()(case.student, case.teacher, case.batch)
