from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.losses.uskd import USKD, zipf_targets
from kd_lightning.types import UNLABELLED, Output
from tests.losses import properties, response
from tests.losses.properties import Case
from tests.losses.relations import feature_case, gradients_of_adapters
from tests.reference import uskd as reference

MAPS = partial(feature_case, "stage2", student=(4, 3, 3), teacher=(4, 3, 3))


def built(case: Case, *arguments: float) -> USKD:
    loss = USKD("stage2", *arguments)
    loss.build(Probe(case.student), None)
    return loss


def maker(*arguments: float) -> properties.Make:
    return lambda: built(MAPS(), *arguments)


def weak_logits(loss: USKD, case: Case) -> Tensor:
    assert loss.weak is not None
    logits: Tensor = loss.weak(case.student.features["stage2"].flatten(2).mean(2))
    return logits


def drawn(*arguments: float) -> USKD:
    """The loss that `properties.value_of` makes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return built(MAPS(), *arguments).double()


CHECKS = (
    properties.batch_order,
    properties.saturated,
    partial(properties.half_precision, rtol=2**-6),
    properties.gradient_reach,
    response.one_sample,
    response.duplication,
)


@pytest.mark.parametrize("check", CHECKS)
def test_properties(check: properties.Check) -> None:
    check(maker(1.0, 0.1, 0.5), MAPS())


@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1, 2, 3)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_agrees_with_reference(
    weights: tuple[float, float, float], scale: float
) -> None:
    case = MAPS(scale=scale)
    case.batch.target[2] = UNLABELLED
    weak: list[list[float]] = weak_logits(drawn(*weights), case).tolist()
    terms = reference.uskd(
        case.student.logits.tolist(), weak, case.batch.target.tolist()
    )
    expected = (
        weights[0] * terms.target + weights[1] * terms.others + weights[2] * terms.weak
    )
    value = properties.value_of(maker(*weights), case)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # Two samples give their labels 1/2 and 1/4: the mean square is 5/32, r = 35/32 and 29/32.
    logits = torch.tensor(
        [[math.log(2), 0, 0], [math.log(2), 0, 0]], dtype=torch.float64
    )
    case = feature_case("stage2", 2)
    student = Output(logits, {"stage2": torch.zeros(2, 4, dtype=torch.float64)})
    batch = replace(case.batch, target=torch.tensor([0, 1]))
    case = Case(student, case.teacher, batch)

    def make(*arguments: float) -> USKD:
        loss = built(case, *arguments)
        assert loss.weak is not None
        torch.nn.init.zeros_(loss.weak.bias)
        return loss

    expected = (35 / 32 * math.log(2) + 29 / 32 * math.log(4)) / 2
    value = properties.value_of(partial(make, 1.0, 0.0, 0.0), case)
    assert value.item() == pytest.approx(expected)
    # Two other classes have the targets (2/3, 1/3) by rank. The first sample's (1/2, 1/2) costs
    # ln 2, the second's (2/3, 1/3) its own entropy.
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    value = properties.value_of(partial(make, 0.0, 1.0, 0.0), case)
    assert value.item() == pytest.approx((math.log(2) + entropy) / 2)
    # The weak head reads nothing: it is uniform.
    value = properties.value_of(partial(make, 0.0, 0.0, 1.0), case)
    assert value.item() == pytest.approx(math.log(3))


def test_zipf_targets() -> None:
    found = zipf_targets(
        torch.tensor([[0.1, 0.5, 0.4], [7.0, 7.0, 9.0]], dtype=torch.float64)
    )
    expected = torch.tensor([[2, 6, 3], [3, 2, 6]], dtype=torch.float64) / 11
    assert_close(found, expected)


def test_gradients_with_fixed_weights() -> None:
    """r and the ranks are constants; without the first, finite differences agree."""
    case = MAPS()
    properties.double_gradients(maker(0.0, 1.0, 0.5), case)
    _, (gradient, *_) = properties.gradients_of(maker(1.0, 0.0, 0.0), case)
    q = case.student.log_probs().exp()
    own = torch.nn.functional.one_hot(case.batch.target, 5).double()
    squares = (q * own).sum(1).square()
    r = squares + 1 - squares.mean()
    assert_close(gradient, r[:, None] * (q - own) / 6)


def test_unlabelled_rows_count_nowhere() -> None:
    case = MAPS()
    case.batch.target[[1, 4]] = UNLABELLED
    value, gradients = properties.gradients_of(maker(1.0, 0.1, 0.5), case)
    labelled = properties.select(case, torch.tensor([0, 2, 3, 5]))
    assert_close(value, properties.value_of(maker(1.0, 0.1, 0.5), labelled))
    for gradient in gradients:
        assert not gradient[[1, 4]].any()
    case.batch.target[:] = UNLABELLED
    value, gradients = properties.gradients_of(maker(1.0, 0.1, 0.5), case)
    assert value == 0
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_mixed_samples_count_both_labels() -> None:
    """The same partner costs what the label alone costs; a share of 0 what the partner costs."""
    case = MAPS()
    make = maker(1.0, 0.1, 0.5)
    value = properties.value_of(make, case)
    share = torch.full((6,), 0.3)
    equal = replace(case.batch, partner=case.batch.target, share=share)
    assert_close(properties.value_of(make, replace(case, batch=equal)), value)
    other = replace(case.batch, target=(case.batch.target + 1) % 3)
    swapped = replace(other, partner=case.batch.target, share=torch.zeros(6))
    assert_close(properties.value_of(make, replace(case, batch=swapped)), value)


def test_the_weight_depends_on_the_batch() -> None:
    """The declared exception: halves do not cost their mean."""
    case = MAPS()
    halves = [properties.select(case, rows) for rows in torch.arange(6).chunk(2)]
    mean = sum(properties.value_of(maker(), half).item() for half in halves) / 2
    assert properties.value_of(maker(), case).item() != pytest.approx(mean, rel=1e-4)


def test_gradients_reach_the_weak_head_from_its_own_term_alone() -> None:
    case = MAPS()
    gradients = gradients_of_adapters(drawn(1.0, 1.0, 0.0), case)
    assert not any(bool(gradient.any()) for gradient in gradients.values())
    gradients = gradients_of_adapters(drawn(0.0, 0.0, 1.0), case)
    assert set(gradients) == {"weak.weight", "weak.bias"}
    assert all(bool(gradient.any()) for gradient in gradients.values())
    _, (_, feature) = properties.gradients_of(maker(0.0, 0.0, 1.0), case)
    assert feature.any()


def test_the_weak_head_is_state() -> None:
    assert set(drawn().state_dict()) == {"weak.weight", "weak.bias"}


def test_is_trained_without_a_teacher() -> None:
    assert not USKD.uses_teacher
    loss = response.shipped("uskd")["uskd"]
    assert isinstance(loss, USKD)
    assert (loss.alpha, loss.beta, loss.mu, loss.layer) == (0.1, 0.1, 0.1, "stage2")


def test_bad_layers() -> None:
    case = MAPS()
    with pytest.raises(UserError, match="USKD: layer must be the role of a layer"):
        USKD("")
    tokens = Output(case.student.logits, {"stage2": torch.zeros(6, 3, 4)})
    with pytest.raises(UserError, match="USKD reads vectors"):
        USKD().build(Probe(tokens), None)
    pixels = Output(torch.zeros(12, 5), {"stage2": torch.zeros(6, 3, 4, 4)})
    with pytest.raises(UserError, match="USKD is for one label per sample"):
        USKD().build(Probe(pixels), None)


@pytest.mark.parametrize("name", ["alpha", "beta", "mu"])
def test_bad_weights(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(
        UserError, match=f"USKD: {name} must be a finite number of at least 0"
    ):
        USKD(**options)


def test_defaults() -> None:
    loss = USKD()
    assert loss.alpha == 1.0
    assert loss.beta == 0.1
    assert loss.mu == 0.005
    assert loss.layer == "stage2"
