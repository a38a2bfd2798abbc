"""Top-k outputs: k + 1 events for both networks, and a dense form for metrics."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kd_lightning import losses
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.kd import KD
from kd_lightning.metrics import TeacherComparison
from kd_lightning.sparse import TopKOutput, log_sum_of_others
from kd_lightning.types import EnsembleOutput, Output, mean_log_probs
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference import kd as reference
from tests.reference import topk

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def sparse(
    logits: Tensor, k: int, temperatures: tuple[float, ...] = TEMPERATURES
) -> TopKOutput:
    """The k largest logits of each row."""
    values, indices = logits.topk(k)
    rest = [log_sum_of_others(logits / t, indices) for t in temperatures]
    return TopKOutput(
        values, indices, torch.cat(rest, -1), temperatures, logits.shape[-1]
    )


def with_sparse_teacher(case: Case, k: int) -> Case:
    return Case(case.student, sparse(case.teacher.logits, k), case.batch)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_loss_agrees_with_the_formula(k: int, temperature: float) -> None:
    for seed, scale in enumerate((0.1, 1.0, 30.0)):
        case = random_case(classes=7, scale=scale, seed=seed)
        value = properties.value_of(
            partial(KD, temperature), with_sparse_teacher(case, k)
        ).item()
        rows = case.student.logits.tolist(), case.teacher.logits.tolist()
        assert value == pytest.approx(topk.kd(*rows, k, temperature), rel=1e-9)
        assert -1e-12 <= value <= reference.kd(*rows, temperature) + 1e-12


def test_by_hand() -> None:
    # Teacher (1/2, 1/4, 1/8, 1/8) and student (1/4, 1/4, 1/4, 1/4) at T = 1. With k = 1 these are
    # (1/2, 1/2) and (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = ln(2 / sqrt(3)).
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    case = random_case(rows=1, classes=4)
    case.student = Output(torch.zeros(1, 4, dtype=torch.float64))
    case.teacher = sparse(teacher, 1)
    value, (gradient,) = properties.gradients_of(partial(KD, 1.0), case)
    assert value.item() == pytest.approx(math.log(2 / math.sqrt(3)))
    # The class: q - p. Within the rest the student keeps its own proportions, of 1/3 each.
    assert gradient.tolist() == [pytest.approx([-1 / 4, 1 / 12, 1 / 12, 1 / 12])]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [4, 5])
def test_all_classes_but_one_or_all_are_the_dense_loss(
    k: int, temperature: float
) -> None:
    case = random_case(classes=5, scale=3.0)
    make = partial(KD, temperature)
    value, gradients = properties.gradients_of(make, with_sparse_teacher(case, k))
    expected, expected_gradients = properties.gradients_of(make, case)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 10, 999])
def test_a_student_that_equals_the_teacher_has_no_loss(
    k: int, temperature: float, dtype: torch.dtype
) -> None:
    """1,000 Gaussian logits of standard deviation 2.5: evenly spread, the rest cost 1.1 nats."""
    case = random_case(classes=1000, scale=2.5)
    case = properties.cast(Case(case.teacher, case.teacher, case.batch), dtype)
    value, (gradient,) = properties.gradients_of(
        partial(KD, temperature), with_sparse_teacher(case, k)
    )
    assert value == 0
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_gradients_agree_with_finite_differences(k: int) -> None:
    case = with_sparse_teacher(random_case(), k)
    properties.double_gradients(KD, case)


def test_saturated_logits_keep_the_loss_finite() -> None:
    case = random_case(classes=7, scale=1e4)
    for dtype in (torch.float32, torch.bfloat16):
        changed = with_sparse_teacher(properties.cast(case, dtype), 2)
        value, gradients = properties.gradients_of(KD, changed)
        assert all(tensor.isfinite().all() for tensor in (value, *gradients))


def test_an_ensemble_can_be_the_student() -> None:
    members = random_case(rows=6, classes=5).student.logits.unflatten(0, (3, 2))
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    student = EnsembleOutput(
        mean_log_probs(members, weights), members=members, weights=weights
    )
    teacher = sparse(torch.zeros(3, 5, dtype=torch.float64), 4)
    prediction, target = teacher.paired_log_probs(student, 4.0)
    expected = student.log_probs(4.0).gather(-1, teacher.indices)
    torch.testing.assert_close(prediction[:, :4], expected)
    torch.testing.assert_close(target.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def test_the_metrics_of_an_equal_student_are_perfect() -> None:
    logits = random_case(classes=100, scale=2.5).teacher.logits.float()
    comparison = TeacherComparison()
    comparison.update(Output(logits), sparse(logits, 3))
    assert comparison.kl.compute() == 0
    assert comparison.agreement.compute() == 1


def test_the_dense_form_spreads_the_rest_evenly() -> None:
    # Probabilities (1/2, 1/4, 1/8, 1/8): the two largest are stored, the rest is log(1/4).
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    top = sparse(logits, 2)
    torch.testing.assert_close(top.logits, logits)
    for temperature in TEMPERATURES:
        expected = Output(logits).log_probs(temperature)
        torch.testing.assert_close(top.log_probs(temperature), expected)
    assert top.map(lambda tensor: tensor).logits.shape == (1, 4)


def test_every_loss_on_a_distribution_of_the_teacher_knows_top_k() -> None:
    """A loss on the teacher's logits refuses a top-k cache, or is 0 for an equal student."""
    names = []
    for name in losses.__all__:
        loss = getattr(losses, name)
        if (
            not issubclass(loss, DistillLoss)
            or loss is DistillLoss
            or loss.exact_logits
        ):
            continue
        if not any("logits" in need for need in loss.needs):
            continue
        names.append(name)
        case = random_case(classes=50, scale=2.5)
        [temperature] = loss().teacher_temperatures
        teacher = sparse(case.teacher.logits, 5, (temperature,))
        value = loss()(case.teacher, teacher, case.batch)
        assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert names == ["GJSD", "Jeffreys", "KD", "ReverseKL", "SkewKL", "TotalVariation"]


def test_a_temperature_that_is_not_stored_is_named() -> None:
    top = sparse(torch.zeros(1, 4), 2, (1.0, 4.0))
    with pytest.raises(
        UserError, match=r"hold the temperatures 1, 4, not 3; .*--temperatures 1 4 3"
    ):
        top.log_probs(3.0)
    with pytest.raises(UserError, match="not 3"):
        top.paired_log_probs(Output(torch.zeros(1, 4)), 3.0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_larger_cache_can_be_read_as_a_smaller_one(k: int) -> None:
    logits = random_case(classes=7).teacher.logits
    truncated = sparse(logits, 5).truncated(k)
    expected = sparse(logits, k)
    assert torch.equal(truncated.values, expected.values)
    assert torch.equal(truncated.indices, expected.indices)
    torch.testing.assert_close(truncated.rest, expected.rest)


def test_without_the_rest_the_stored_classes_share_all_probability() -> None:
    """The renormalized target of other frameworks: sum_k p_k / s ln(p_k / (s q_k))."""
    case = random_case(classes=6)
    teacher = sparse(case.teacher.logits, 3).without_rest()
    value = properties.value_of(
        partial(KD, 1.0), Case(case.student, teacher, case.batch)
    )
    expected = []
    for z, v in zip(case.student.logits, case.teacher.logits, strict=True):
        top = v.topk(3).indices
        p = v.softmax(-1)[top]
        p = p / p.sum()
        q = z.softmax(-1)[top]
        expected.append((p * (p / q).log()).sum())
    assert value.item() == pytest.approx(torch.stack(expected).mean().item())
    # A student that equals its teacher is no minimum: it is punished for the other classes.
    equal = Case(Output(case.teacher.logits), teacher, case.batch)
    assert properties.value_of(partial(KD, 1.0), equal).item() > 0
