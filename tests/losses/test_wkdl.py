from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.losses.totalvariation import total_variation
from kd_lightning.losses.wkdl import (
    WKDL,
    class_costs,
    others_only,
    transport_cost,
    transport_factors,
)
from kd_lightning.types import Output
from tests.losses import properties, relations, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, logits_of
from tests.reference import wkdl as reference

CHECKS = [
    *(check for check in properties.ALL if check is not properties.half_precision),
    relations.half_precision,
    *response.LABELLED,
    response.mixes_labels,
    properties.batch_size,
]


def similarities(classes: int) -> Tensor:
    """Symmetric, 1 on the diagonal."""
    rng = torch.Generator().manual_seed(2)
    drawn = torch.rand(classes, classes, generator=rng, dtype=torch.float64)
    mean = (drawn + drawn.T) / 2
    return mean.fill_diagonal_(1.0)


def built(classes: int, of: Tensor | None = None, **arguments: Any) -> WKDL:
    loss = WKDL(**arguments).double()
    loss.build(Probe(Output(torch.zeros(2, classes))), None)
    if of is not None:
        loss.costs = class_costs(of, loss.kappa)
    return loss


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def two_costs(cost: float) -> Tensor:
    return torch.tensor([[1e-8, cost], [cost, 1e-8]], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 8.0])
@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check, temperature: float) -> None:
    check(partial(built, 5, temperature=temperature, transport=5.0), random_case())


@pytest.mark.parametrize("temperature", [1.0, 8.0])
@pytest.mark.parametrize("iterations", [1, 10])
def test_agrees_with_reference(temperature: float, iterations: int) -> None:
    for seed, scale in enumerate((0.1, 1.0, 5.0)):
        case = random_case(classes=6, scale=scale, seed=seed)
        of = similarities(6)
        costs = reference.costs_of(of.tolist(), 2.0)
        options = (30.0, temperature, iterations)
        expected = reference.wkdl(
            *logits_of(case), case.batch.target.tolist(), costs, options
        )
        make = partial(
            built,
            6,
            of,
            kappa=2.0,
            transport=30.0,
            temperature=temperature,
            iterations=iterations,
        )
        assert properties.value_of(make, case).item() == pytest.approx(
            expected, rel=1e-9
        )


def test_known_values() -> None:
    """Ten iterations do not converge where costs are much larger than 0.05."""
    q = logs([0.6, 0.4])
    p = logs([0.5, 0.5])
    known = {(0.5, 10): 0.00052, (0.5, 100): 0.05, (0.1, 10): 0.01515}
    for (cost, iterations), expected in known.items():
        value = transport_cost(q, p, two_costs(cost), iterations)
        assert value.item() == pytest.approx(expected, abs=5e-6)


def test_by_hand() -> None:
    # Three classes, the label is the first. Both others cost c = 1 - e^-0.5 to exchange. The
    # student's others are (1/2, 1/2), the teacher's (3/4, 1/4): a quarter moves, at c, once it converges.
    case = case_of([[0, 0, 0]], [[math.log(4), math.log(3), 0]], [0])
    make = partial(built, 3, transport=2.0, temperature=1.0, iterations=500, kappa=0.5)
    expected = math.log(3) / 2 + 2 * (1 - math.exp(-0.5)) / 4
    assert properties.value_of(make, case).item() == pytest.approx(expected, rel=2e-3)


def test_both_margins_are_matched() -> None:
    case = random_case(classes=6)
    labels = case.batch.target.clamp(max=5)
    q = others_only(case.student.log_probs(), labels)
    p = others_only(case.teacher.log_probs(), labels)
    costs = class_costs(similarities(6), 0.3)
    log_u, log_v = transport_factors(q, p, costs, 200)
    plan = log_u.exp()[:, :, None] * (-costs / 0.05).exp() * log_v.exp()[:, None]
    assert_close(plan.sum(2), q.exp(), rtol=0, atol=1e-9)
    assert_close(plan.sum(1), p.exp(), rtol=0, atol=1e-3)
    # The target class takes no part.
    rows = torch.arange(6)
    assert not plan[rows, labels].any()
    assert not plan[rows, :, labels].any()


def test_classes_equally_unlike_give_the_total_variation() -> None:
    case = random_case()
    q = others_only(case.student.log_probs(), case.batch.target)
    p = others_only(case.teacher.log_probs(), case.batch.target)
    costs = class_costs(torch.eye(5, dtype=torch.float64), 0.5)
    moved = transport_cost(q, p, costs, 500).mean()
    expected = (1 - math.exp(-0.5)) * total_variation(q, p)
    assert moved.item() == pytest.approx(expected.item(), rel=1e-2)


def test_moving_to_a_similar_class_is_cheap() -> None:
    costs = class_costs(similarities(3), 1.0)
    near, far = costs[0, 1].item(), costs[0, 2].item()
    assert near != pytest.approx(far, rel=0.05)
    start = logs([0.998, 0.001, 0.001])
    values = [
        transport_cost(start, logs(row), costs, 500).item()
        for row in ([0.001, 0.998, 0.001], [0.001, 0.001, 0.998])
    ]
    assert values == [pytest.approx(near, rel=0.05), pytest.approx(far, rel=0.05)]


def test_classes_that_both_rule_out_leave_the_value() -> None:
    """But for their part of the uniform start: with enough iterations."""
    case = random_case()
    make = partial(built, transport=30.0, kappa=0.2, iterations=300)
    value = properties.value_of(partial(make, 5), case)
    wide = properties.both(
        case, lambda x: torch.cat([x, torch.full_like(x, -math.inf)], 1)
    )
    assert_close(properties.value_of(partial(make, 10), wide), value)


def test_small_probabilities_do_not_underflow() -> None:
    q = torch.log_softmax(torch.tensor([[0.0, -300.0, -600.0]]), 1)
    p = torch.log_softmax(torch.tensor([[-600.0, 0.0, -300.0]]), 1)
    costs = class_costs(torch.eye(3), 1.0)
    value = transport_cost(q, p, costs, 10)
    assert value.isfinite().all()


def test_the_minimum_is_not_the_teacher() -> None:
    case = random_case()
    same = Case(case.teacher, case.teacher, case.batch)
    assert properties.value_of(partial(built, 5), same) > 1e-2
    assert not WKDL.minimum_at_teacher
    # The transport itself is least there.
    p = others_only(case.teacher.log_probs(), case.batch.target)
    costs = class_costs(similarities(5), 1.0)
    least = transport_cost(p, p, costs, 300).sum()
    q = others_only(case.student.log_probs(), case.batch.target)
    assert transport_cost(q, p, costs, 300).sum() > least


def test_reads_similarities_and_keeps_the_costs(tmp_path: Path) -> None:
    path = tmp_path / "similarities.pt"
    torch.save(similarities(5), path)
    loss = built(5, similarities=str(path), kappa=2.0)
    assert_close(loss.costs, class_costs(similarities(5), 2.0).float())
    assert set(loss.state_dict()) == {"costs"}
    # A resumed run does not need the numbers of the file any more.
    other = built(5)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.costs, loss.costs)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "similarities.pt"
    with pytest.raises(UserError, match="WKDL: there is no file"):
        built(5, similarities=str(path))
    path.write_text("nothing")
    with pytest.raises(UserError, match="does not hold a tensor"):
        built(5, similarities=str(path))
    torch.save(similarities(4), path)
    with pytest.raises(UserError, match=r"must hold a tensor of shape \[5, 5\]"):
        built(5, similarities=str(path))
    torch.save(2 * similarities(5), path)
    with pytest.raises(UserError, match="must be finite numbers of at most 1"):
        built(5, similarities=str(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", -1),
        ("temperature", 0),
        ("kappa", 0),
        ("iterations", 0),
        ("iterations", 1.5),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"WKDL: {name} must be"):
        WKDL(**{name: value})


def test_defaults() -> None:
    loss = WKDL()
    assert loss.transport == 600.0
    assert loss.temperature == 8.0
    assert loss.kappa == 1.0
    assert loss.iterations == 10
