from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.featurecosine import FeatureCosine, cosine_distance, resized
from tests.losses import features, properties
from tests.losses.features import feature_case, made
from tests.losses.properties import Case, Make
from tests.reference import foundation as reference

STUDENT: features.Shapes = {"penultimate": (2,), "map": (2, 3, 2)}
SIZES: dict[str, features.Shapes] = {
    "one size": {"penultimate": (4,), "map": (3, 3, 2)},
    "larger teacher": {"penultimate": (4,), "map": (3, 5, 4)},
    "smaller teacher": {"penultimate": (4,), "map": (3, 1, 2)},
}
sizes = pytest.mark.parametrize("teacher", SIZES.values(), ids=SIZES)


def loss_of(case: Case, **arguments: Any) -> Make:
    return made(partial(FeatureCosine, **arguments), case)


@sizes
@pytest.mark.parametrize("check", [*features.WITH_ADAPTERS, properties.batch_size])
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case), case)


def mapped(vector: list[float], layer: Any) -> list[float]:
    weight = layer.weight.flatten(1).tolist()
    pairs = zip(weight, layer.bias.tolist(), strict=True)
    return [
        sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in pairs
    ]


@sizes
def test_agrees_with_reference(teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    loss: Any = loss_of(case, overall=0.5, local=2.0)().double()
    own = case.student.features["penultimate"].tolist()
    own = [mapped(vector, loss.projector) for vector in own]
    target = case.teacher.features["penultimate"].tolist()
    expected = 0.5 * reference.distance(own, target)
    _, height, width = teacher["map"]
    vectors = []
    targets = []
    for sample, target_sample in zip(
        case.student.features["map"].tolist(),
        case.teacher.features["map"].tolist(),
        strict=True,
    ):
        planes = [reference.interpolated(plane, height, width) for plane in sample]
        for y in range(height):
            for x in range(width):
                vectors.append(
                    mapped([plane[y][x] for plane in planes], loss.map_projector)
                )
                targets.append([plane[y][x] for plane in target_sample])
    expected += 2.0 * reference.distance(vectors, targets)
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    """The cosine of (3, 4) and (4, 3) is 24 / 25; lengths play no part."""
    own, target = torch.tensor([[3.0, 4.0]]), torch.tensor([[40.0, 30.0]])
    assert cosine_distance(own, target).item() == pytest.approx(1 / 25)
    assert cosine_distance(own, -2 * own).item() == pytest.approx(2)
    assert cosine_distance(own, 5 * own).item() == pytest.approx(0, abs=1e-6)
    # Twice the width: the outer values stay, and between the centers they change evenly.
    wide = resized(torch.tensor([[[[0.0, 4.0]]]]), torch.zeros(1, 1, 1, 4))
    assert wide.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_without_maps() -> None:
    case = feature_case({"penultimate": (2, 3, 1)}, {"penultimate": (4, 2, 2)})
    loss: Any = loss_of(case, map_layer=None)().double()
    assert loss.map_projector is None
    assert loss.student_roles == {"penultimate"}
    own = case.student.features["penultimate"].mean((2, 3))
    target = case.teacher.features["penultimate"].mean((2, 3))
    expected = cosine_distance(loss.projector(own), target)
    found = loss(case.student, case.teacher, case.batch)
    torch.testing.assert_close(found, expected)


def test_trains_with_its_config(tmp_path: Path) -> None:
    run = features.run_method("featurecosine", tmp_path)
    assert 0 < run.metrics["train_loss_featurecosine"] < 4


def test_refusals() -> None:
    case = feature_case(STUDENT, SIZES["one size"])
    with pytest.raises(UserError, match="leave nothing to compare"):
        FeatureCosine(overall=0.0, map_layer=None)
    with pytest.raises(UserError, match="local must be a finite number of at least 0"):
        FeatureCosine(local=-1.0)
    with pytest.raises(UserError, match="FeatureCosine needs a teacher"):
        FeatureCosine().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="FeatureCosine has no adapters yet"):
        FeatureCosine()(case.student, case.teacher, case.batch)
