from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.hinton2015.analysis.bias import SHIFTS, best_shift, errors_by_shift
from kd_lightning.errors import UserError


@pytest.mark.parametrize("classes", [[3], [7, 8], [0, 1, 2, 3, 4]])
def test_errors_are_those_of_shifted_logits(classes: list[int]) -> None:
    rng = torch.Generator().manual_seed(len(classes))
    logits = 6 * torch.randn(400, 10, generator=rng)
    target = torch.randint(0, 10, (400,), generator=rng)
    found = errors_by_shift(logits, target, classes)
    for at in range(0, len(SHIFTS), 37):
        shifted = logits.double().clone()
        shifted[:, classes] += float(SHIFTS[at])
        assert found[at] == (shifted.argmax(1) != target).sum()


def test_the_best_shift_gives_an_unseen_class_its_due() -> None:
    # Class 2 has the largest logit but for a bias of -5 that every case shares.
    logits = torch.tensor([[0.0, 0.0, -3.0], [3.0, 0.0, -5.0], [0.0, 3.0, -5.0]])
    target = torch.tensor([2, 0, 1])
    errors = errors_by_shift(logits, target, [2])
    assert errors[SHIFTS == 0.0] == 1
    shift = best_shift(errors)
    assert errors.min() == 0
    assert 3.0 < shift < 8.0


def test_ties_take_the_middle() -> None:
    errors = np.full(len(SHIFTS), 9)
    errors[100:105] = 1
    assert best_shift(errors) == SHIFTS[102]


@pytest.mark.parametrize("classes", [[], [0, 1, 2]])
def test_all_or_no_classes_are_refused(classes: list[int]) -> None:
    with pytest.raises(UserError, match="some classes must be shifted and some not"):
        errors_by_shift(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), classes)
