from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.losses.adaptivekl import AdaptiveKL, head_share
from kd_lightning.losses.kd import KD
from tests.losses import properties, response
from tests.losses.properties import Case, random_case
from tests.losses.response import case_of, example, logits_of
from tests.reference import adaptivekl as reference


@pytest.mark.parametrize("mass", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "check",
    [
        # The weight has no gradient; `test_the_gradient_is_that_of_fixed_weights` has it.
        *(
            check
            for check in properties.ALL
            if check is not properties.double_gradients
        ),
        *response.SOFT,
        properties.batch_size,
    ],
)
def test_properties(check: properties.Check, mass: float) -> None:
    check(partial(AdaptiveKL, mass), random_case())


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(mass: float, temperature: float) -> None:
    factor = temperature**2

    def expected(case: Case) -> float:
        return factor * reference.adaptive_kl(*logits_of(case), mass, temperature)

    properties.agrees(partial(AdaptiveKL, mass, temperature), expected)


def test_known_values() -> None:
    case = example()
    value = properties.value_of(AdaptiveKL, case)
    assert value.item() == pytest.approx(0.181627, abs=1e-6)
    q = case.student.log_probs().exp()
    p = case.teacher.log_probs().exp()
    # The sheet weights by the share of the head, which is 0 in the first row only if the likeliest
    # class alone exceeds the mass; it is in the head all the same.
    assert head_share(q, p, 0.5).shape == (2,)


def test_by_hand() -> None:
    # p = (1/2, 3/10, 1/5), q = (1/5, 3/10, 1/2): the head is class 0, with 3/10 of 6/10.
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    assert head_share(q, p, 0.5).item() == pytest.approx(0.5)
    # A larger head holds class 1 too, where both agree.
    assert head_share(q, p, 0.85).item() == pytest.approx(0.5)
    assert head_share(q, p, 1.0).item() == pytest.approx(1.0)
    case = case_of(q.log().tolist(), p.log().tolist())
    # KL(p | q) and KL(q | p) are equal here: 3/10 ln(5/2).
    value = properties.value_of(AdaptiveKL, case)
    assert value.item() == pytest.approx(0.3 * math.log(2.5))


def test_with_all_mass_it_is_kl() -> None:
    case = example()
    value = properties.value_of(partial(AdaptiveKL, 1.0), case)
    assert value.item() == pytest.approx(
        properties.value_of(partial(KD, 1.0), case).item()
    )


def test_the_gradient_is_that_of_fixed_weights() -> None:
    case = random_case()
    _, (gradient,) = properties.gradients_of(AdaptiveKL, case)
    z = case.student.logits.clone().requires_grad_()
    log_q = z.log_softmax(-1)
    log_p = case.teacher.log_probs()
    share = head_share(log_q.exp().detach(), log_p.exp(), 0.5)
    forward_kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    (share * forward_kl + (1 - share) * reverse_kl).mean().backward()
    assert z.grad is not None
    torch.testing.assert_close(gradient, z.grad)
    assert 0 < share.min() < share.max() < 1


@pytest.mark.parametrize("mass", [0, 1.1, -0.1, math.nan, "2", True])
def test_bad_mass(mass: Any) -> None:
    message = r"AdaptiveKL: mass must be a number in \(0, 1\]"
    with pytest.raises(UserError, match=message):
        AdaptiveKL(mass)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "2", True])
def test_bad_temperature(temperature: Any) -> None:
    message = "AdaptiveKL: temperature must be a finite number greater than 0"
    with pytest.raises(UserError, match=message):
        AdaptiveKL(temperature=temperature)


def test_top_k_caches_are_refused() -> None:
    assert AdaptiveKL.exact_logits
