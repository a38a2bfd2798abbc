"""A teacher that rules classes out with logits of -inf: 0 * log 0 is 0, in the value and in the gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.abkd import ABKD
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ctkd import CTKD
from kd_lightning.losses.dist import DIST
from kd_lightning.losses.dkd import DKD
from kd_lightning.losses.gjsd import GJSD
from kd_lightning.losses.harddistillation import HardDistillation
from kd_lightning.losses.kd import KD
from kd_lightning.losses.nkd import NKD
from kd_lightning.losses.skewkl import SkewKL
from kd_lightning.losses.taid import TAID
from kd_lightning.losses.totalvariation import TotalVariation
from kd_lightning.losses.ttm import TTM
from kd_lightning.metrics import TeacherComparison
from kd_lightning.types import Batch, Output

LOSSES: list[DistillLoss] = [
    KD(4.0),
    KD(1.0),
    DKD(temperature=4.0),
    DIST(),
    GJSD(),
    SkewKL(),
    SkewKL(reverse=True),
    TAID(),
    TotalVariation(),
    HardDistillation(),
    NKD(),
    TTM(),
    TTM(weighted=True),
    ABKD(),
    CTKD(),
]
"""Without those that do not converge as the teacher's logits fall: reverse KL and Jeffreys'
divergence are infinite, RLD is 0 / 0 where no class besides the label is possible, and the weights
of WSLD converge slowly."""


def case(masked: list[int]) -> tuple[Tensor, Tensor, Batch]:
    """Logits of a student and of a teacher that rules out some classes, and their batch."""
    rng = torch.Generator().manual_seed(1)
    student = torch.randn(6, 5, generator=rng)
    teacher = torch.randn(6, 5, generator=rng)
    teacher[:, masked] = -math.inf
    target = torch.tensor([0, 1, 0, 1, 0, 1])
    return student, teacher, Batch(torch.zeros(6, 1), target, torch.arange(6))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("masked", [[4], [2, 3, 4], [0]])
def test_value_and_gradient_are_the_limit(loss: DistillLoss, masked: list[int]) -> None:
    student, teacher, batch = case(masked)
    limit = teacher.clamp(min=-1e4)
    results = []
    for logits in (teacher, limit):
        own = student.clone().requires_grad_()
        value = loss(Output(own), Output(logits), batch)
        value.backward()
        assert own.grad is not None
        results.append((value.detach(), own.grad))
    assert results[0][0].isfinite()
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_one_class_alone(loss: DistillLoss) -> None:
    student, teacher, batch = case([1, 2, 3, 4])
    own = student.requires_grad_()
    value = loss(Output(own), Output(teacher), batch)
    value.backward()
    assert own.grad is not None
    assert bool(own.grad.isfinite().all())
    assert value.isfinite()


def test_a_class_that_both_rule_out() -> None:
    student, teacher, batch = case([4])
    student[:, 4] = -math.inf
    own = student.clone().requires_grad_()
    value = KD(4.0)(Output(own), Output(teacher), batch)
    value.backward()
    assert own.grad is not None
    expected = KD(4.0)(Output(student[:, :4]), Output(teacher[:, :4]), batch)
    torch.testing.assert_close(value.detach(), expected)
    assert bool(own.grad.isfinite().all())


def test_finite_logits_give_the_same_bits_as_before() -> None:
    student, teacher, batch = case([])
    q = torch.log_softmax(student / 4, dim=-1)
    p = torch.log_softmax(teacher / 4, dim=-1)
    plain = F.kl_div(q, p, reduction="batchmean", log_target=True) * 16
    assert torch.equal(KD(4.0)(Output(student), Output(teacher), batch), plain)


def test_nan_stays_nan() -> None:
    student, teacher, batch = case([])
    teacher[2, 2] = math.nan
    assert KD(4.0)(Output(student), Output(teacher), batch).isnan()


def test_the_divergence_in_evaluation() -> None:
    student, teacher, _ = case([4])
    comparison = TeacherComparison()
    comparison.update(Output(student), Output(teacher))
    assert comparison.kl.compute().isfinite()
