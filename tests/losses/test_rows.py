"""Row-wise losses on pixels and tokens: the value of the same rows as a plain classification batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_lightning.losses import (
    ABKD,
    CTKD,
    DKD,
    GJSD,
    KD,
    NKD,
    RLD,
    TAID,
    TTM,
    WSLD,
    AdaptiveKL,
    CrossEntropy,
    DistillLoss,
    HardDistillation,
    Jeffreys,
    LogitMSE,
    LogitStandardization,
    ReverseKL,
    SkewKL,
    TfKD,
    TotalVariation,
)
from kd_lightning.losses.base import weight_of
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses.properties import Case, gradients_of, select, value_of

K = 4
VOID = 255
SHAPES = {"pixels": (2, 3, 3), "tokens": (3, 6)}
SOFT: tuple[Callable[[], DistillLoss], ...] = (
    KD,
    LogitMSE,
    LogitStandardization,
    ReverseKL,
    GJSD,
    Jeffreys,
    TotalVariation,
    HardDistillation,
    TTM,
    ABKD,
    CTKD,
    SkewKL,
    AdaptiveKL,
    TAID,
)
HARD: tuple[Callable[[], DistillLoss], ...] = (CrossEntropy, DKD, TfKD, WSLD, NKD, RLD)


def dense_case(kind: str, mixed: bool = False) -> Case:
    """A batch with some void and some unlabelled positions, and one row of logits per position."""
    rng = torch.Generator().manual_seed(1)
    shape = SHAPES[kind]
    target = torch.randint(K, shape, generator=rng)
    void = torch.rand(shape, generator=rng) < 0.3
    target[torch.rand(shape, generator=rng) < 0.3] = UNLABELLED
    target[void] = VOID
    assert void.any()
    assert (target == UNLABELLED).any()
    batch = Batch(torch.zeros(shape[0], 1), target, torch.arange(shape[0]))
    batch.positions = (~void).flatten().nonzero().flatten()
    if mixed:
        batch.partner = torch.randint(K, shape, generator=rng)
        batch.partner[torch.rand(shape, generator=rng) < 0.3] = UNLABELLED
        batch.share = torch.rand(shape[0], generator=rng)
    rows = len(batch.positions)
    student, teacher = torch.randn(2, rows, K, generator=rng, dtype=torch.float64)
    return Case(Output(student), Output(teacher), batch)


def as_classification(case: Case) -> Case:
    """The same rows, each as a sample of its own; picked one by one, without `positions`."""
    batch = case.batch
    labels: list[int] = []
    partners: list[int] = []
    shares: list[float] = []
    assert batch.positions is not None
    per_sample = batch.target[0].numel()
    for position in batch.positions.tolist():
        sample, place = divmod(position, per_sample)
        labels.append(int(batch.target[sample].flatten()[place]))
        if batch.partner is not None and batch.share is not None:
            partners.append(int(batch.partner[sample].flatten()[place]))
            shares.append(float(batch.share[sample]))
    plain = Batch(
        torch.zeros(len(labels), 1), torch.tensor(labels), torch.arange(len(labels))
    )
    if partners:
        plain.partner = torch.tensor(partners)
        plain.share = torch.tensor(shares)
    return replace(case, batch=plain)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("make", [*SOFT, *HARD])
def test_positions_are_rows(
    make: Callable[[], DistillLoss], kind: str, mixed: bool
) -> None:
    case = dense_case(kind, mixed)
    plain = as_classification(case)
    value, gradients = gradients_of(make, case)
    expected, expected_gradients = gradients_of(make, plain)
    assert torch.equal(value, expected)
    assert all(map(torch.equal, gradients, expected_gradients))
    mean_over = make().mean_over
    assert torch.equal(
        weight_of(mean_over, case.batch), weight_of(mean_over, plain.batch)
    )


@pytest.mark.parametrize("make", [*SOFT, *HARD])
def test_void_positions_count_nowhere(make: Callable[[], DistillLoss]) -> None:
    """Whatever stands in the target's void positions, value and gradient stay the same."""
    case = dense_case("pixels")
    void = case.batch.target == VOID
    for filling in (UNLABELLED, 0, VOID + 1):
        other = replace(case.batch, target=case.batch.target.masked_fill(void, filling))
        value, gradients = gradients_of(make, case)
        other_value, other_gradients = gradients_of(make, replace(case, batch=other))
        assert torch.equal(value, other_value)
        assert all(map(torch.equal, gradients, other_gradients))


@pytest.mark.parametrize("make", [*SOFT, *HARD])
def test_padding_changes_nothing(make: Callable[[], DistillLoss]) -> None:
    """Texts padded to a greater length: the same rows, hence the same value and gradient."""
    target = torch.tensor([[1, 2, 0], [3, UNLABELLED, 0]])
    short = Batch(
        torch.zeros(2, 1),
        target,
        torch.arange(2),
        positions=torch.tensor([0, 1, 2, 3, 4]),
    )
    longer = torch.cat([target, torch.zeros(2, 4, dtype=torch.int64)], 1)
    padded = replace(short, target=longer, positions=torch.tensor([0, 1, 2, 7, 8]))
    student, teacher = torch.randn(
        2, 5, K, generator=torch.Generator().manual_seed(0)
    ).double()
    case = Case(Output(student), Output(teacher), short)
    value, gradients = gradients_of(make, case)
    other_value, other_gradients = gradients_of(make, replace(case, batch=padded))
    assert torch.equal(value, other_value)
    assert all(map(torch.equal, gradients, other_gradients))


def unlabelled_rows(case: Case) -> Tensor:
    return case.batch.labels == UNLABELLED


@pytest.mark.parametrize("make", SOFT)
def test_soft_losses_count_unlabelled_rows(make: Callable[[], DistillLoss]) -> None:
    case = dense_case("pixels")
    _, (gradient,) = gradients_of(make, case)
    assert gradient.any(dim=1).all()
    assert weight_of(make().mean_over, case.batch) == case.batch.num_rows


@pytest.mark.parametrize("make", HARD)
def test_hard_losses_ignore_unlabelled_rows(make: Callable[[], DistillLoss]) -> None:
    case = dense_case("pixels")
    unlabelled = unlabelled_rows(case)
    value, (gradient,) = gradients_of(make, case)
    assert not gradient[unlabelled].any()
    assert gradient[~unlabelled].any(dim=1).all()
    labelled = select(as_classification(case), (~unlabelled).nonzero().flatten())
    torch.testing.assert_close(value, value_of(make, labelled))
    assert weight_of(make().mean_over, case.batch) == (~unlabelled).sum()
