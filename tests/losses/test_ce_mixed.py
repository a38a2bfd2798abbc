"""Cross-entropy where samples are mixed: both labels, by their shares."""

from __future__ import annotations

import math

import pytest
import torch

from kd_lightning.losses.base import weight_of
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses.properties import Case, random_case
from tests.reference import mixed

U = UNLABELLED


def mixed_case(
    partner: list[int], share: list[float], target: list[int] | None = None
) -> Case:
    case = random_case()
    if target is not None:
        case.batch.target = torch.tensor(target)
    case.batch.partner, case.batch.share = torch.tensor(partner), torch.tensor(share)
    return case


CASES = {
    "all labelled": mixed_case([0, 1, 2, 1, 0, 3], [0.3, 0.9, 0.5, 1.0, 0.0, 0.7]),
    "some unlabelled": mixed_case(
        [0, U, 2, U, 0, 3], [0.3, 0.9, 0.5, 1.0, 0.0, 0.7], [1, 2, U, U, 0, U]
    ),
}


def value(case: Case, label_smoothing: float = 0.0) -> torch.Tensor:
    hard_loss = CrossEntropy(label_smoothing=label_smoothing)
    loss: torch.Tensor = hard_loss(case.student, None, case.batch)
    return loss


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_agrees_with_reference(name: str, smoothing: float) -> None:
    case = CASES[name]
    assert case.batch.partner is not None
    assert case.batch.share is not None
    target, partner, share = (
        t.tolist() for t in (case.batch.target, case.batch.partner, case.batch.share)
    )
    expected = mixed.mixed_cross_entropy(
        case.student.logits.tolist(), target, partner, share, smoothing
    )
    assert value(case, label_smoothing=smoothing).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    batch = CASES[name].batch

    def total(logits: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = CrossEntropy()(Output(logits), None, batch)
        return loss

    logits = CASES[name].student.logits.double().detach().requires_grad_()
    assert torch.autograd.gradcheck(total, logits)


def test_by_hand() -> None:
    # Logits (0, ln 3) are probabilities (1/4, 3/4): label 0 costs ln 4, label 1 ln(4/3). At a share of 1/4 of label 0:
    # ln(4) / 4 + 3 ln(4/3) / 4 = ln 4 - 3 ln(3) / 4.
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    batch = Batch(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0]))
    batch.partner, batch.share = torch.tensor([1]), torch.tensor([0.25])
    loss = CrossEntropy()(Output(logits), None, batch)
    assert loss.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))
    # Without the partner's label its part costs nothing, and the own part does not grow.
    batch.partner = torch.tensor([U])
    assert CrossEntropy()(Output(logits), None, batch).item() == pytest.approx(
        math.log(4) / 4
    )


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_share_of_all_or_nothing_is_the_plain_loss(own: float) -> None:
    partner = [3, 0, 1, 2, 2, 0]
    case = mixed_case(partner, [own] * 6)
    plain = random_case()
    if not own:
        plain.batch.target = torch.tensor(partner)
    assert value(case).item() == pytest.approx(value(plain).item())


def test_no_label_at_all_costs_nothing_and_keeps_the_graph() -> None:
    case = mixed_case([U] * 6, [0.5] * 6, [U] * 6)
    logits = case.student.logits.requires_grad_()
    loss = value(case)
    assert loss.item() == 0.0
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_processes_count_the_samples_of_the_mean() -> None:
    for case in CASES.values():
        parts = []
        for rows in (torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])):
            batch = case.batch.slice(int(rows[0]), int(rows[-1]) + 1)
            loss = CrossEntropy()
            parts.append(
                (
                    loss(Output(case.student.logits[rows]), None, batch),
                    weight_of(loss.mean_over, batch),
                )
            )
        together = sum(v * n for v, n in parts) / sum(n for _, n in parts)
        torch.testing.assert_close(together, value(case))
    placeholder = CASES["all labelled"].batch.slice(0, 1)
    placeholder.placeholder = True
    assert int(weight_of(CrossEntropy.mean_over, placeholder)) == 0


def test_half_precision_is_finite() -> None:
    case = mixed_case([0, 1, 2, 1, 0, 3], [0.3, 0.9, 0.5, 1.0, 0.0, 0.7])
    logits = (case.student.logits * 1e3).to(torch.bfloat16)
    loss = CrossEntropy()(Output(logits), None, case.batch)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())
