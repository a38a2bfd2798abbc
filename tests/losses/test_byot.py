from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.byot import BYOT, Exit, active_distance
from kd_lightning.types import UNLABELLED, Output
from kd_lightning.weights import network_weights
from tests.losses import features, properties, response
from tests.losses.features import feature_case
from tests.losses.properties import Case, Make, change, leaf, value_of
from tests.reference import byot as reference
from tests.training.small import copied, same

SHAPES: features.Shapes = {"stage1": (2, 4, 4), "stage2": (3, 2, 3), "map": (8, 2, 2)}
WEIGHTS: dict[str, Any] = {"soft": 0.4, "hints": 0.3, "temperature": 2.0}


def drawn() -> Case:
    """Four samples of three classes."""
    case = feature_case(SHAPES, {})
    return replace(case, batch=replace(case.batch, target=torch.tensor([0, 1, 2, 0])))


def loss_of(case: Case, **arguments: Any) -> Make:
    """Fresh losses of the same exits, which are built without a teacher."""

    def make() -> BYOT:
        loss = BYOT(**{**WEIGHTS, **arguments})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss.build(features.probe(case.student), None)
        return loss

    return make


CHECKS = [
    check
    for check in features.WITH_ADAPTERS
    # The network's own output is a constant target, which finite differences would move.
    if check is not properties.double_gradients
]


@pytest.mark.parametrize("check", [*CHECKS, response.one_sample])
def test_properties(check: properties.Check) -> None:
    case = drawn()
    check(loss_of(case), case)


def test_gradients_of_exits_agree_with_finite_differences() -> None:
    case = drawn()
    make = loss_of(case)

    def value(*stages: Tensor) -> Tensor:
        changed = dict(zip(("stage1", "stage2"), stages, strict=True))
        captured = {**case.student.features, **changed}
        student = Output(case.student.logits, captured)
        return value_of(make, replace(case, student=student))

    stages = [leaf(case.student.features[role]) for role in ("stage1", "stage2")]
    assert torch.autograd.gradcheck(value, stages)


def test_agrees_with_reference() -> None:
    case = drawn()
    case.batch.target[2] = UNLABELLED
    loss: Any = loss_of(case)().double().eval()
    last = case.student.features["map"].mean((2, 3)).tolist()
    network = (case.student.logits.tolist(), last)
    options = (WEIGHTS["soft"], WEIGHTS["hints"], WEIGHTS["temperature"])
    expected = 0.0
    for role, exit_ in zip(loss.layers, loss.exits, strict=True):
        feature, logits = exit_(case.student.features[role])
        outputs = (logits.tolist(), feature.tolist())
        labels = case.batch.target.tolist()
        expected += reference.cost(outputs, network, labels, options)
    found = loss(case.student, None, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # One exit that predicts (1/2, 1/2) from the feature 0; the network says (3/4, 1/4) at T = 2
    # with the feature 3.
    case = drawn()
    captured = {"stage1": torch.ones(1, 1, 2, 2), "map": torch.full((1, 1, 1, 1), 3.0)}
    logits = torch.tensor([[2 * math.log(3), 0.0]])
    student = change(Output(logits, captured), Tensor.double)
    batch = properties.select(case, torch.tensor([1])).batch
    case = Case(student, student, batch)
    loss: Any = loss_of(case, layers=["stage1"])().double()
    # Without its scale, the last normalization returns its shift: 0.
    nn.init.zeros_(loss.exits[0].bottleneck[7].weight)
    nn.init.zeros_(loss.exits[0].head.weight)
    nn.init.zeros_(loss.exits[0].head.bias)
    soft = 4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))
    expected = 0.6 * math.log(2) + 0.4 * soft + 0.3 * 9
    value = loss.eval()(student, None, batch)
    assert value.item() == pytest.approx(expected)


def test_distance_of_active_channels() -> None:
    own = torch.tensor([[1.0, -1.0, 0.0, -2.0]])
    target = torch.tensor([[2.0, 3.0, -5.0, -7.0]])
    assert active_distance(own, target).item() == 1 + 16
    assert active_distance(own, own).item() == 0


def test_the_network_teaches_and_learns_only_from_what_leads_to_exits() -> None:
    case = drawn()
    student = change(case.student, leaf)
    loss: Any = loss_of(case)().double()
    torch.autograd.backward(loss(student, None, case.batch))
    assert student.logits.grad is None
    assert student.features["map"].grad is None
    for role in ("stage1", "stage2"):
        gradient = student.features[role].grad
        assert gradient is not None
        assert gradient.any()


def test_an_exit_that_agrees_costs_the_hard_loss_alone() -> None:
    case = drawn()
    loss: Any = loss_of(case, layers=["stage1"])().double().eval()
    feature, logits = loss.exits[0](case.student.features["stage1"])
    captured = {**case.student.features, "map": feature.detach()[:, :, None, None]}
    student = Output(logits.detach(), captured)
    expected = 0.6 * torch.nn.functional.cross_entropy(logits, case.batch.target)
    torch.testing.assert_close(loss(student, None, case.batch), expected)


def test_labels() -> None:
    """Without labels the soft terms remain; mixed samples count both labels by their shares."""
    case = drawn()
    loss: Any = loss_of(case)().double().eval()
    nameless = replace(case.batch, target=torch.full((4,), UNLABELLED))
    both_terms: Any = loss_of(case, soft=1.0)().double().eval()
    divergence: Any = loss_of(case, soft=1.0, hints=0.0)().double().eval()
    of_divergence = divergence(case.student, None, case.batch)
    of_hints = both_terms(case.student, None, case.batch) - of_divergence
    expected = 0.4 * of_divergence + of_hints
    torch.testing.assert_close(loss(case.student, None, nameless), expected)
    shares = torch.tensor([0.25, 1.0, 0.0, 0.5])
    partner = torch.tensor([1, UNLABELLED, 1, 2])
    mixed = replace(case.batch, partner=partner, share=shares)
    total = 0.0
    for row in range(4):
        for labels, part in (
            (case.batch.target, shares[row]),
            (partner, 1 - shares[row]),
        ):
            plain = replace(case, batch=replace(case.batch, target=labels))
            alone = properties.select(plain, torch.tensor([row]))
            cost = loss(alone.student, None, alone.batch).item()
            total += float(part) * cost / 4
    assert loss(case.student, None, mixed).item() == pytest.approx(total)


def test_exits_end_at_the_size_of_the_last_map() -> None:
    exit_ = Exit(torch.Size([2, 3, 8, 6]), torch.Size([2, 16, 2, 2]), 7)
    assert exit_.bottleneck(torch.zeros(2, 3, 8, 6)).shape == (2, 16, 2, 2)
    feature, logits = exit_(torch.zeros(2, 3, 8, 6))
    assert feature.shape == (2, 16)
    assert logits.shape == (2, 7)
    assert exit_.bottleneck[3].kernel_size == (4, 3)
    assert exit_.bottleneck[3].in_channels == 4


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("byot", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        0.9 * run.metrics["train_loss_ce"] + run.metrics["train_loss_byot"], rel=1e-5
    )
    loss = response.shipped("byot")["byot"]
    assert isinstance(loss, BYOT)
    assert (loss.soft, loss.hints, loss.temperature) == (0.1, 1.28e-4, 3.0)
    # Exits are in the training checkpoint and not in the student.
    content = features.checkpoint_of(run)
    assert "losses.byot.exits.1.head.weight" in content["state_dict"]
    assert same(network_weights(content), copied(run.module.net))


def test_trains_without_a_teacher_and_resumes(tmp_path: Path) -> None:
    module = features.trains(BYOT, tmp_path)
    assert not module.losses["own"].uses_teacher


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "stage1"}, "BYOT: layers must list different roles"),
        ({"last": ""}, "BYOT: last must be the role of a layer"),
        ({"soft": -0.1}, "BYOT: soft must be a finite number of at least 0"),
        ({"soft": 1.5}, r"BYOT: soft must be in \[0, 1\], got 1.5"),
        ({"hints": -1}, "BYOT: hints must be a finite number of at least 0"),
        ({"temperature": 0}, "BYOT: temperature must be a finite number"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        BYOT(**arguments)


def test_bad_features_and_calls_before_build() -> None:
    case = drawn()
    with pytest.raises(UserError, match="BYOT has no adapters yet"):
        BYOT()(case.student, None, case.batch)
    with pytest.raises(UserError, match=r"the layer 'map' gives \[8\] per sample"):
        loss_of(feature_case({**SHAPES, "map": (8,)}, {}))()
    with pytest.raises(UserError, match="'stage2' has 2 x 3 positions, fewer than the"):
        loss_of(feature_case({**SHAPES, "map": (8, 4, 3)}, {}))()
