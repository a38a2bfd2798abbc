"""Class weights of cross-entropy, and a head of its own."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import properties
from tests.losses.properties import random_case

WEIGHTS = [0.5, 2.0, 0.0, 1.25, 1.0]
SMOOTHING = (0.0, 0.2)


def reference(
    logits: list[list[float]],
    targets: list[int],
    weights: list[float],
    smoothing: float,
) -> list[float]:
    """Each row's loss by the formula: - sum over k of w_k y_k log softmax(z)_k."""
    costs = []
    for row, target in zip(logits, targets, strict=True):
        if target == UNLABELLED:
            costs.append(0.0)
            continue
        total = sum(math.exp(z) for z in row)
        cost = 0.0
        for k, z in enumerate(row):
            label = smoothing / len(row) + (1 - smoothing) * (k == target)
            cost -= weights[k] * label * math.log(math.exp(z) / total)
        costs.append(cost)
    return costs


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_weighted_mean_over_labelled_rows(smoothing: float) -> None:
    case = random_case()
    case.batch.target[[1, 4]] = UNLABELLED
    loss = partial(CrossEntropy, label_smoothing=smoothing, class_weights=WEIGHTS)
    logits = case.student.logits.tolist()
    costs = reference(logits, case.batch.target.tolist(), WEIGHTS, smoothing)
    # Divided by the four labelled rows, whatever their weights are.
    assert properties.value_of(loss, case).item() == pytest.approx(sum(costs) / 4)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_mixed_samples_weigh_both_labels(smoothing: float) -> None:
    case = random_case()
    partner = [0, UNLABELLED, 2, 1, 0, 3]
    share = [0.3, 0.9, 0.5, 1.0, 0.0, 0.7]
    case.batch.partner = torch.tensor(partner)
    case.batch.share = torch.tensor(share)
    loss = partial(CrossEntropy, label_smoothing=smoothing, class_weights=WEIGHTS)
    logits = case.student.logits.tolist()
    own = reference(logits, case.batch.target.tolist(), WEIGHTS, smoothing)
    other = reference(logits, partner, WEIGHTS, smoothing)
    mixed = [s * a + (1 - s) * b for s, a, b in zip(share, own, other, strict=True)]
    assert properties.value_of(loss, case).item() == pytest.approx(sum(mixed) / 6)


def test_equal_weights_change_nothing() -> None:
    case = random_case()
    plain = properties.value_of(CrossEntropy, case)
    assert torch.equal(
        plain, properties.value_of(partial(CrossEntropy, class_weights=[1] * 5), case)
    )


def test_weights_are_no_state() -> None:
    assert CrossEntropy(class_weights=WEIGHTS).state_dict() == {}


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [math.nan, 1.0], []])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(
        UserError, match="class_weights must be finite numbers of at least 0"
    ):
        CrossEntropy(class_weights=weights)


def test_one_weight_per_class() -> None:
    with pytest.raises(
        UserError, match="class_weights has 2 numbers, the data unknown has 4"
    ):
        CrossEntropy(class_weights=[1, 2]).build(Probe(Output(torch.zeros(2, 4))), None)


def test_a_head_has_a_loss_of_its_own() -> None:
    target = torch.tensor([0, 1])
    batch = Batch(torch.zeros(2, 1), target, torch.arange(2))
    head = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    student = Output(torch.zeros(2, 3), {"aux": head})
    loss = CrossEntropy(head="aux")
    assert loss.student_roles == {"aux"}
    assert torch.equal(
        loss(student, None, batch), CrossEntropy()(Output(head), None, batch)
    )
    student.features["aux"] = torch.zeros(2, 5)
    with pytest.raises(UserError, match="the head 'aux' returned shape"):
        loss(student, None, batch)
