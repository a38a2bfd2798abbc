from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses.vkd import OrthogonalProjection, VkD, projection_distance
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import vkd as reference
from tests.reference.heads import pooled
from tests.reference.vid import times

VECTORS: features.Shapes = {"penultimate": (3,)}
WIDER: features.Shapes = {"penultimate": (4,)}
NARROWER: features.Shapes = {"penultimate": (2,)}
MAPS: features.Shapes = {"penultimate": (3, 2, 2)}
WIDER_MAPS: features.Shapes = {"penultimate": (4, 3, 1)}

kinds = pytest.mark.parametrize(
    ("student", "teacher"),
    [(VECTORS, WIDER), (VECTORS, NARROWER), (MAPS, WIDER_MAPS)],
    ids=["wider", "narrower", "maps"],
)


def loss_of(case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(VkD, case, prepare)


def reaches_projection(make: Make, case: Case) -> None:
    loss: Any = make().double()
    teacher = properties.change(case.teacher, properties.leaf)
    torch.autograd.backward(loss(case.student, teacher, case.batch))
    below = loss.projection.lower.grad.tril(-1)
    assert below.any()
    assert torch.equal(loss.projection.lower.grad, below)
    assert all(tensor.grad is None for tensor in properties.tensors(teacher))


@kinds
@pytest.mark.parametrize(
    "check",
    [
        *(c for c in features.WITH_ADAPTERS if c is not features.reaches_adapters),
        properties.batch_size,
        reaches_projection,
    ],
)
def test_properties(
    check: properties.Check, student: features.Shapes, teacher: features.Shapes
) -> None:
    case = feature_case(student, teacher)
    check(loss_of(case), case)


@kinds
def test_agrees_with_reference(
    student: features.Shapes, teacher: features.Shapes
) -> None:
    for seed in range(3):
        case = feature_case(student, teacher, seed=seed)
        loss: Any = loss_of(case)().double()
        nn.init.normal_(loss.projection.lower, std=0.3)
        sides = [
            case.student.features["penultimate"],
            case.teacher.features["penultimate"],
        ]
        own, target = [
            [pooled(sample) for sample in side.tolist()]
            if side.ndim == 4
            else side.tolist()
            for side in sides
        ]
        matrix = loss.projection.weight().tolist()
        expected = reference.distance([times(matrix, row) for row in own], target)
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # The teacher's (1, 3) is standardized to (-1, 1). Against (-1, 1.5) and (2, 1): 0 and 0.5^2 / 2,
    # then 3 - 1/2 and 0.
    case = case_of(
        [[-1.0, 1.5], [2.0, 1.0]], [[1.0, 3.0], [5.0, 9.0]], role="penultimate"
    )

    def straight(loss: Any) -> None:
        loss.projection.base.copy_(torch.eye(2))

    value = value_of(loss_of(case, straight), case)
    assert value.item() == pytest.approx((0.125 + 2.5) / 4, abs=1e-4)


@pytest.mark.parametrize(("width", "teacher_width"), [(3, 5), (5, 3), (4, 4)])
def test_the_projection_stays_orthogonal(width: int, teacher_width: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = OrthogonalProjection(width, teacher_width).double()
        feature, target = (
            torch.randn(8, width).double(),
            torch.randn(8, teacher_width).double(),
        )
    optimizer = torch.optim.SGD(projection.parameters(), lr=0.5)
    start = projection.weight().detach()
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = projection_distance(projection(feature), target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    weight = projection.weight().detach()
    assert weight.shape == (teacher_width, width)
    assert values[-1] < values[0]
    assert not torch.allclose(weight, start, atol=1e-3)
    product = weight.T @ weight if width <= teacher_width else weight @ weight.T
    size = min(width, teacher_width)
    # `base` comes from single precision.
    torch.testing.assert_close(product, torch.eye(size).double(), atol=1e-5, rtol=0)


def test_minimum_where_the_projection_gives_the_standardized_feature() -> None:
    case = feature_case(WIDER, WIDER)
    target = case.teacher.features["penultimate"]
    best = nn.functional.layer_norm(target, [4])
    assert projection_distance(best, target) == 0
    assert projection_distance(best + 1e-3, target) > 0
    # The teacher's scale and shift do not matter.
    assert projection_distance(best, 100 * target - 3) < 1e-6


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(VkD, tmp_path)


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("vkd", tmp_path)
    metrics = run.metrics
    assert metrics["train_loss"] == pytest.approx(
        metrics["train_loss_ce"] + metrics["train_loss_kd"] + metrics["train_loss_vkd"],
        rel=1e-5,
    )
    state = features.checkpoint_of(run)["state_dict"]
    assert {"losses.vkd.projection.base", "losses.vkd.projection.lower"} <= set(state)


def test_bad_arguments_and_calls_before_build() -> None:
    case = feature_case(VECTORS, WIDER)
    with pytest.raises(UserError, match="VkD: layer must be the role of a layer"):
        VkD("")
    with pytest.raises(UserError, match="VkD needs a teacher"):
        VkD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="VkD has no adapters yet"):
        VkD()(case.student, case.teacher, case.batch)
