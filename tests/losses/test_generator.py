"""The generator's losses: DAFL and ZSKT."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kd_lightning.losses import KD
from kd_lightning.losses.generator.dafl import DAFL, negative_entropy, one_hot_loss
from kd_lightning.losses.generator.zskt import ZSKT
from kd_lightning.types import Batch, Output
from tests.reference import dafl as reference
from tests.reference import kd as kd_reference
from tests.training.small import complaint

STUDENT = torch.tensor([[1.0, 0, -1], [0, 2, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0, 1], [1, 3, 0]], dtype=torch.float64)
BATCH = Batch(torch.zeros(2, 1), torch.tensor([-100, -100]), torch.arange(2))


def output(logits: Tensor) -> Output:
    return Output(logits, {"penultimate": logits * 2 - 1})


def test_dafl_by_hand() -> None:
    assert one_hot_loss(TEACHER).item() == pytest.approx(0.288726, abs=1e-6)
    assert negative_entropy(TEACHER).item() == pytest.approx(-1.001321, abs=1e-6)


def test_dafl_agrees_with_the_reference() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    loss = DAFL(one_hot=0.7, activation=0.3, entropy=2.0)
    value = loss(output(logits), output(logits), BATCH).item()
    feature = (logits * 2 - 1).tolist()
    expected = reference.dafl(logits.tolist(), feature, 0.7, 0.3, 2.0)
    assert value == pytest.approx(expected, abs=1e-12)
    # No layer is read if its term has no weight.
    assert DAFL(activation=0.0).teacher_roles == set()


def test_dafl_counts_a_class_without_probability_as_zero() -> None:
    logits = torch.tensor([[0.0, -1e4], [0.0, -1e4]], requires_grad=True)
    value = negative_entropy(logits)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_zskt_is_the_negative_divergence() -> None:
    value = ZSKT()(output(STUDENT), output(TEACHER), BATCH).item()
    assert value == pytest.approx(-0.154219, abs=1e-6)
    at_4 = ZSKT(temperature=4.0)(output(STUDENT), output(TEACHER), BATCH).item()
    expected = kd_reference.kd(STUDENT.tolist(), TEACHER.tolist(), 4.0)
    assert at_4 == pytest.approx(-expected, abs=1e-12)
    same = ZSKT()(output(TEACHER), output(TEACHER), BATCH).item()
    assert same == pytest.approx(0, abs=1e-12)


def test_gradients_reach_the_images_through_both_networks() -> None:
    # A step against the gradient raises the divergence that the student minimizes.
    images = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    kd = KD(temperature=1.0)

    def divergence() -> float:
        both = output(images * 0.5), output(images.flip(1) * 2)
        return float(kd(*both, BATCH))

    before = divergence()
    ZSKT()(output(images * 0.5), output(images.flip(1) * 2), BATCH).backward()
    assert images.grad is not None
    with torch.no_grad():
        images -= 0.01 * images.grad
    assert divergence() > before
    # The teacher alone passes a gradient on, too.
    value = ZSKT()(output(STUDENT), output(images * 2), BATCH)
    [gradient] = torch.autograd.grad(value, images)
    assert float(gradient.abs().sum()) > 0


def test_the_sum_over_classes_ignores_impossible_ones() -> None:
    padding = torch.full((2, 3), -1e9, dtype=torch.float64)
    wide = [output(torch.cat([logits, padding], 1)) for logits in (STUDENT, TEACHER)]
    value = ZSKT()(*wide, BATCH).item()
    assert value == pytest.approx(-0.154219, abs=1e-6)


def test_mistakes() -> None:
    assert "temperature" in complaint(partial(ZSKT, temperature=0.0))
    assert "entropy" in complaint(partial(DAFL, entropy=-1.0))
