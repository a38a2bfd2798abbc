from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.logitmse import LogitMSE, Reduction
from kd_lightning.types import Batch, Output
from tests.losses import properties
from tests.losses.properties import Case, random_case
from tests.reference.logitmse import logit_mse

variants = pytest.mark.parametrize(
    ("classes", "center"), list(product(("sum", "mean"), (False, True)))
)


@variants
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(check: properties.Check, classes: Reduction, center: bool) -> None:
    check(partial(LogitMSE, classes, center), random_case())


@variants
def test_minimum_at_the_teacher(classes: Reduction, center: bool) -> None:
    case = random_case()
    properties.minimum(
        partial(LogitMSE, classes, center), Case(case.teacher, case.teacher, case.batch)
    )


@variants
def test_agrees_with_reference(classes: Reduction, center: bool) -> None:
    def expected(case: Case) -> float:
        return logit_mse(
            case.student.logits.tolist(),
            case.teacher.logits.tolist(),
            classes == "mean",
            center,
        )

    properties.agrees(partial(LogitMSE, classes, center), expected)


# z - v is (3, 0, 0) and (1, 1, 1); centred (2, -1, -1) and (0, 0, 0). Squares sum to 9 and 3; centred to 6 and 0.
# Half of it, mean over two rows: sum (4.5 + 1.5) / 2 = 3, centred (3 + 0) / 2 = 1.5; mean over three classes a third.
@pytest.mark.parametrize(
    ("classes", "center", "expected"),
    [
        ("sum", False, 3.0),
        ("sum", True, 1.5),
        ("mean", False, 1.0),
        ("mean", True, 0.5),
    ],
)
def test_by_hand(classes: Reduction, center: bool, expected: float) -> None:
    student = Output(torch.tensor([[4.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    teacher = Output(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert LogitMSE(classes, center)(student, teacher, batch).item() == pytest.approx(
        expected
    )


def test_gradient_by_hand() -> None:
    # The derivative of 1/2 (z - v)^2, summed over classes, mean over two rows: (z - v) / 2.
    case = random_case(rows=2)
    _, (gradient,) = properties.gradients_of(LogitMSE, case)
    torch.testing.assert_close(
        gradient, (case.student.logits - case.teacher.logits) / 2
    )


@pytest.mark.parametrize("center", [False, True])
def test_only_centered_ignores_a_shift_of_the_logits(center: bool) -> None:
    case = random_case()
    shifted = Output(case.student.logits + 5)
    value = LogitMSE(center=center)(shifted, case.student, case.batch).item()
    # 5^2 in each of 5 classes, halved: 62.5.
    assert value == pytest.approx(0.0 if center else 62.5, abs=1e-12)


def test_needs_a_teacher() -> None:
    case = random_case()
    with pytest.raises(UserError, match="LogitMSE needs a teacher"):
        LogitMSE()(case.student, None, case.batch)
