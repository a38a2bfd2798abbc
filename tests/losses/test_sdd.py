from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.kd import KD
from kd_lightning.losses.sdd import SDD, cell_logits, cell_weights
from kd_lightning.types import UNLABELLED, Output
from kd_lightning.weights import network_weights
from tests.losses import features, properties, response
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, change, leaf, value_of
from tests.reference import sdd as reference
from tests.training.small import copied, same

STUDENT: features.Shapes = {"map": (2, 4, 4)}
TEACHER: features.Shapes = {"map": (4, 4, 4)}
LARGER: features.Shapes = {"map": (4, 7, 6)}

divergences = pytest.mark.parametrize("divergence", ["kd", "dkd"])
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def drawn(
    student: features.Shapes = STUDENT, teacher: features.Shapes = TEACHER
) -> Case:
    """Four samples, the last of which has no label in the checks that remove it."""
    case = feature_case(student, teacher, rows=4)
    return replace(case, batch=replace(case.batch, target=torch.tensor([0, 1, 2, 0])))


def head_of(feature: Tensor, seed: int) -> dict[str, nn.Module]:
    rng = torch.Generator().manual_seed(seed)
    head = nn.Linear(feature.shape[1], 3).double()
    head.weight.data = torch.randn(head.weight.shape, generator=rng).double()
    head.bias.data = torch.randn(3, generator=rng).double()
    return {"head": head}


def loss_of(case: Case, **arguments: Any) -> Make:
    return made(
        partial(SDD, **arguments),
        case,
        student_modules=head_of(case.student.features["map"], 0),
        teacher_modules=head_of(case.teacher.features["map"], 1),
    )


CHECKS = [
    check
    for check in features.WITHOUT_ADAPTERS
    # The mean is over labelled samples; finite differences follow on smaller maps.
    if check not in (features.mean_over_samples, properties.double_gradients)
]


@divergences
@sizes
@pytest.mark.parametrize("check", CHECKS)
def test_properties(
    check: properties.Check, teacher: features.Shapes, divergence: str
) -> None:
    case = drawn(teacher=teacher)
    check(loss_of(case, divergence=divergence), case)


@divergences
def test_gradients_agree_with_finite_differences(divergence: str) -> None:
    case = drawn({"map": (2, 2, 2)}, {"map": (3, 3, 2)})
    properties.double_gradients(loss_of(case, divergence=divergence), case)


@pytest.mark.parametrize("dkd", [None, (1.0, 8.0), (2.0, 0.5)])
@pytest.mark.parametrize("grids", [[1], [1, 2], [1, 2, 4], [1, 3]])
@sizes
def test_agrees_with_reference(
    teacher: features.Shapes, grids: list[int], dkd: tuple[float, float] | None
) -> None:
    case = drawn(teacher=teacher)
    case.batch.target[3] = UNLABELLED
    sides = []
    for seed, output in enumerate((case.student, case.teacher)):
        feature = output.features["map"]
        head: Any = head_of(feature, seed)["head"]
        weight, bias = head.weight.tolist(), head.bias.tolist()
        samples = feature.tolist()
        sides.append([reference.cells(maps, weight, bias, grids) for maps in samples])
    target = case.batch.target.tolist()
    expected = reference.sdd(sides[0], sides[1], target, 3.0, dkd)
    arguments: dict[str, Any] = {"grids": grids, "temperature": 3.0}
    if dkd is not None:
        arguments |= {"divergence": "dkd", "alpha": dkd[0], "beta": dkd[1]}
    value = value_of(loss_of(case, **arguments), case)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # One channel, classes (x, 0), T = 1. The teacher sees ln 3 and -ln 3 in its two columns: its
    # global logits are equal, and the first class wins. The student is indifferent everywhere.
    third = math.log(3)
    case = case_of(
        [[[[0.0, 0.0], [0.0, 0.0]]]],
        [[[[third, -third], [third, -third]]]],
        role="map",
    )
    head = nn.Linear(1, 2).double()
    head.weight.data = torch.tensor([[1.0], [0.0]]).double()
    head.bias.data = torch.zeros(2).double()
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    student = replace(case.student, logits=zeros)
    teacher = replace(case.teacher, logits=zeros)
    case = replace(case, student=student, teacher=teacher)
    heads = {"head": head}
    make = made(
        partial(SDD, grids=[1, 2], temperature=1.0),
        case,
        student_modules=heads,
        teacher_modules=heads,
    )
    # KL((3/4, 1/4) | (1/2, 1/2)) in all four cells, twice where the second class wins; label 0.
    cell = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert value_of(make, case).item() == pytest.approx((2 + 4) * cell / 5)


def test_weights_of_cells() -> None:
    one, two = [1.0, 0.0], [0.0, 1.0]
    logits = torch.tensor([[one, one, two], [two, one, two], [two, one, two]])
    labels = torch.tensor([0, 0, 1])
    expected = torch.tensor([[1.0, 1, 2], [1, 2, 1], [1, 2, 1]])
    assert torch.equal(cell_weights(logits, labels), expected)


def test_the_global_cell_is_kd_on_the_logits() -> None:
    case = drawn()
    outputs = []
    for seed, output in enumerate((case.student, case.teacher)):
        feature = output.features["map"]
        head: Any = head_of(feature, seed)["head"]
        outputs.append(Output(head(feature.mean((2, 3))).detach()))
        cells = cell_logits(feature, head.weight, head.bias, [1, 2])
        torch.testing.assert_close(cells[:, 0], outputs[-1].logits)
        # Four cells of equal size average to the whole.
        torch.testing.assert_close(cells[:, 1:].mean(1), outputs[-1].logits)
    expected = value_of(KD, Case(outputs[0], outputs[1], case.batch))
    torch.testing.assert_close(value_of(loss_of(case, grids=[1]), case), expected)


def test_grids_finer_than_the_maps_are_left_out() -> None:
    case = drawn(teacher={"map": (4, 2, 3)})
    coarse = value_of(loss_of(case, grids=[1, 2]), case)
    torch.testing.assert_close(value_of(loss_of(case), case), coarse)


@divergences
def test_minimum_where_both_networks_are_equal(divergence: Any) -> None:
    case = drawn(TEACHER, TEACHER)
    heads = head_of(case.teacher.features["map"], 1)
    make = made(
        partial(SDD, divergence=divergence),
        case,
        student_modules=heads,
        teacher_modules=heads,
    )
    properties.minimum(make, Case(case.teacher, case.teacher, case.batch))


@divergences
def test_labels(divergence: str) -> None:
    """Samples without a label cost nothing; mixed ones count both labels by their shares."""
    case = drawn()
    make = loss_of(case, divergence=divergence)
    case.batch.target[1] = UNLABELLED
    value, (_, gradient) = properties.gradients_of(make, case)
    known = properties.select(case, torch.tensor([0, 2, 3]))
    torch.testing.assert_close(value, value_of(make, known))
    assert not gradient[1].any()
    shares = torch.tensor([0.25, 1.0, 0.0, 0.5])
    partner = torch.tensor([1, UNLABELLED, 1, 2])
    mixed = replace(case.batch, partner=partner, share=shares)
    total = 0.0
    for row in (0, 2, 3):
        for labels, part in (
            (case.batch.target, shares[row]),
            (partner, 1 - shares[row]),
        ):
            plain = replace(case, batch=replace(case.batch, target=labels))
            alone = properties.select(plain, torch.tensor([row]))
            total += float(part) * value_of(make, alone).item() / 3
    assert value_of(make, replace(case, batch=mixed)).item() == pytest.approx(total)


def test_names_of_classes_do_not_matter() -> None:
    case = drawn()
    order = torch.tensor([2, 0, 1])
    permuted = []
    for seed, output in enumerate((case.student, case.teacher)):
        heads: Any = head_of(output.features["map"], seed)
        heads["head"].weight.data = heads["head"].weight.data[order]
        heads["head"].bias.data = heads["head"].bias.data[order]
        permuted.append(heads)
    make = made(SDD, case, student_modules=permuted[0], teacher_modules=permuted[1])
    batch = replace(case.batch, target=order.argsort()[case.batch.target])
    torch.testing.assert_close(
        value_of(make, replace(case, batch=batch)), value_of(loss_of(case), case)
    )


def test_gradients_reach_the_students_classifier_and_not_the_teachers() -> None:
    case = drawn()
    own: Any = head_of(case.student.features["map"], 0)
    other: Any = head_of(case.teacher.features["map"], 1)
    loss: Any = made(SDD, case, student_modules=own, teacher_modules=other)().double()
    teacher = change(case.teacher, leaf)
    student = change(case.student, leaf)
    torch.autograd.backward(loss(student, teacher, case.batch))
    assert own["head"].weight.grad.any()
    assert student.features["map"].grad is not None
    assert other["head"].weight.grad is None
    assert teacher.features["map"].grad is None
    assert list(loss.parameters()) == []


def test_trains_residual_networks(tmp_path: Path) -> None:
    module = features.trains(SDD, tmp_path)
    loss: Any = module.losses["own"]
    assert loss._student_head[0] is module.net.head
    assert set(loss.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("sdd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_sdd"], rel=1e-5
    )
    assert same(network_weights(features.checkpoint_of(run)), copied(run.module.net))


def test_the_shipped_methods_are_the_papers() -> None:
    loss = response.shipped("sdd_dkd")["sdd"]
    assert isinstance(loss, SDD)
    assert (loss.divergence, loss.alpha, loss.beta) == ("dkd", 1.0, 8.0)
    assert loss.warmup == 20
    assert loss.grids == [1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "SDD: layer must be the role of a layer"),
        ({"head": ""}, "SDD: head must be the role of a layer"),
        ({"grids": []}, "SDD: grids must be whole numbers"),
        ({"grids": [2, 4]}, "SDD: grids must be whole numbers"),
        ({"grids": [1, 2, 2]}, "SDD: grids must be whole numbers"),
        ({"grids": "124"}, "SDD: grids must be whole numbers"),
        ({"grids": [1, 2.5]}, "SDD: grids must be whole numbers"),
        ({"divergence": "nkd"}, "SDD: divergence must be 'kd' or 'dkd', got 'nkd'"),
        ({"temperature": 0}, "SDD: temperature must be a finite number"),
        ({"alpha": -1}, "SDD: alpha must be a finite number of at least 0"),
        ({"beta": -1}, "SDD: beta must be a finite number of at least 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SDD(**arguments)


def test_bad_heads_and_calls_before_build() -> None:
    case = drawn()
    teacher = features.probe(case.teacher, head_of(case.teacher.features["map"], 1))
    with pytest.raises(UserError, match="the student's layer 'head' is a NoneType"):
        SDD().build(features.probe(case.student), teacher)
    with pytest.raises(UserError, match="SDD needs a teacher"):
        SDD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="SDD has no adapters yet"):
        SDD()(case.student, case.teacher, case.batch)
