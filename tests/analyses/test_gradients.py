from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from experiments.hinton2015.analysis.gradients import (
    Objective,
    hard,
    highest_rate,
    soft,
    spread,
)
from kd_lightning.analyses.grids import coordinates
from kd_lightning.experiments.analysis import Finished
from kd_lightning.models import MLP


@pytest.mark.parametrize("loss", [hard, soft(1.0), soft(20.0)])
def test_spread_is_that_of_gradients_taken_one_by_one(loss: Objective) -> None:
    torch.manual_seed(0)
    network = MLP([5], input_shape=[4], num_classes=3).double()
    x, v = (
        torch.randn(9, 4, dtype=torch.float64),
        3 * torch.randn(9, 3, dtype=torch.float64),
    )
    y = torch.randint(0, 3, (9,))
    rows = []
    for i in range(9):
        network.zero_grad()
        loss(network(x[i : i + 1]), v[i : i + 1], y[i : i + 1]).backward()
        rows.append(
            torch.cat(
                [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            )
        )
    gradients = torch.stack(rows)
    expected = gradients.var(0).sum() / gradients.mean(0).square().sum()
    assert spread(network, x, v, y, loss, chunk=4) == pytest.approx(
        (float(expected), float(gradients.mean(0).norm()))
    )


def test_soft_targets_at_temperature_one_are_cross_entropy_but_for_a_constant() -> None:
    torch.manual_seed(0)
    z, v = torch.randn(1, 5).requires_grad_(), torch.randn(1, 5)
    (a,) = torch.autograd.grad(soft(1.0)(z, v, torch.zeros(1)), z)
    (b,) = torch.autograd.grad(F.cross_entropy(z, v.softmax(-1)), z)
    torch.testing.assert_close(a, b)


def test_the_highest_rate_is_each_seeds_own() -> None:
    def group(*errors: float | None) -> list[Finished]:
        return [
            Finished(i, Path(), {} if e is None else {"test_errors": e})
            for i, e in enumerate(errors)
        ]

    runs = {
        "soft lr=0.1": group(80, 90),
        "soft lr=0.4": group(95, None),
        "hard lr=0.1": group(9020, 100),
    }
    [one, two] = highest_rate(runs, Path(), {"Soft": "soft", "Hard": "hard"})
    assert (one.run, one.values) == ("Soft", [0.4, 0.1])
    assert two.values == [0.1]


def test_coordinates_are_read_from_names() -> None:
    assert coordinates("student, wider hidden=[30, 30] temperature=2.5") == {
        "hidden": "[30, 30]",
        "temperature": "2.5",
    }
