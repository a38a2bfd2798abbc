"""The generator's loss DeepInversion; tests/training/test_data_free.py trains with it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.losses.generator.deepinversion import (
    DeepInversion,
    sample_statistics,
    statistics_distance,
    total_variation,
)
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import response
from tests.reference import dafl as dafl_reference
from tests.reference import deepinversion as reference


def network() -> nn.Sequential:
    """A convolution, a normalization with statistics of some data, and a classifier."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.tensor([0.5, -1.0, 0.0])
    norm.running_var = torch.tensor([1.5, 0.5, 2.0])
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    )
    layers(torch.zeros(2, 2, 5, 4))
    norm.running_mean = torch.tensor([0.5, -1.0, 0.0])
    norm.running_var = torch.tensor([1.5, 0.5, 2.0])
    return layers.double().eval().requires_grad_(False)


def images(rows: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    drawn = torch.randn(rows, 2, 5, 4, generator=rng, dtype=torch.float64)
    return drawn.requires_grad_()


def batch_of(inputs: Tensor) -> Batch:
    labels = torch.full((len(inputs),), UNLABELLED)
    return Batch(inputs, labels, torch.arange(len(inputs)))


def built(teacher: nn.Sequential, **arguments: Any) -> DeepInversion:
    loss = DeepInversion(layers=["norm"], **arguments)
    probe = Probe(Output(torch.zeros(2, 4)), modules={"norm": teacher[1]})
    loss.build(probe, probe)
    return loss


def student_logits(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)[:, :4] * 0.7


def value_of(loss: DeepInversion, teacher: nn.Sequential, inputs: Tensor) -> Tensor:
    student = Output(student_logits(inputs))
    value: Tensor = loss(student, Output(teacher(inputs)), batch_of(inputs))
    return value


@pytest.mark.parametrize("competition", [0.0, 2.0])
def test_agrees_with_reference(competition: float) -> None:
    teacher = network()
    inputs = images()
    weights = {"one_hot": 0.5, "statistics": 3.0, "variation": 0.1}
    loss = built(teacher, **weights, competition=competition, temperature=2.0)
    logits = teacher(inputs).tolist()
    norm: Any = teacher[1]
    expected = 0.5 * dafl_reference.one_hot(logits)
    features = teacher[0](inputs).tolist()
    running = norm.running_mean.tolist(), norm.running_var.tolist()
    expected += 3.0 * reference.statistics(features, *running)
    variations = [reference.variation(image) for image in inputs.tolist()]
    expected += 0.1 * math.fsum(variations) / len(variations)
    pairs = list(zip(student_logits(inputs).tolist(), logits, strict=True))
    divergences = [reference.jensen_shannon(z, v, 2.0) for z, v in pairs]
    expected += competition * (1 - math.fsum(divergences) / len(divergences))
    found = value_of(loss, teacher, inputs).item()
    assert found == pytest.approx(expected, rel=1e-7)


def test_statistics_by_hand() -> None:
    """The values 1, 3, 2 and 2 have mean 2 and variance 1/2; against 0 and 1 that is 2 + 1/2."""
    feature = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])
    means, variances = sample_statistics(feature)
    value = statistics_distance(means, variances, torch.zeros(1), torch.ones(1))
    assert value.item() == pytest.approx(2.5)
    # Four samples without positions are the same values.
    means, variances = sample_statistics(feature.flatten()[:, None])
    value = statistics_distance(means, variances, torch.zeros(1), torch.ones(1))
    assert value.item() == pytest.approx(2.5)


def test_variation_by_hand() -> None:
    # Right: 1 and 2; below: 0 and 3 - 2 = 1; down right: 2; down left: 0 - 1 = -1.
    image = torch.tensor([[[[0.0, 1.0], [0.0, 2.0]]]])
    expected = math.sqrt(5) + 1 + 2 + 1
    assert total_variation(image).item() == pytest.approx(expected)
    assert total_variation(torch.ones(2, 3, 4, 5)).tolist() == [0, 0]


def test_competition_of_the_sheet() -> None:
    """At T = 3 the divergence of the example is 0.008977."""
    case = response.example()
    loss = DeepInversion(
        one_hot=0.0, statistics=0.0, variation=0.0, competition=1.0, temperature=3.0
    )
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(1 - 0.008977, abs=1e-6)


def test_a_step_against_the_gradient_brings_the_statistics_closer() -> None:
    teacher = network()
    inputs = images()
    loss = built(teacher, one_hot=0.0, variation=0.0)
    before = value_of(loss, teacher, inputs)
    (gradient,) = torch.autograd.grad(before, inputs)
    moved = (inputs - 1e-3 * gradient).detach().requires_grad_()
    assert value_of(loss, teacher, moved) < before


def test_the_competition_asks_for_disagreement() -> None:
    teacher = network()
    inputs = images()
    loss = built(teacher, one_hot=0.0, statistics=0.0, variation=0.0, competition=1.0)

    def divergence(inputs: Tensor) -> float:
        logits = student_logits(inputs).tolist(), teacher(inputs).tolist()
        pairs = zip(*logits, strict=True)
        return math.fsum(reference.jensen_shannon(z, v, 3.0) for z, v in pairs)

    (gradient,) = torch.autograd.grad(value_of(loss, teacher, inputs), inputs)
    assert divergence(inputs - 0.1 * gradient) > divergence(inputs)


def test_gradients_agree_with_finite_differences_and_spare_the_teacher() -> None:
    teacher = network()
    loss = built(teacher, competition=1.0)
    inputs = images(2)
    assert torch.autograd.gradcheck(lambda x: value_of(loss, teacher, x), [inputs])
    torch.autograd.backward(value_of(loss, teacher, inputs))
    assert inputs.grad is not None
    assert inputs.grad.any()
    assert all(p.grad is None for p in teacher.parameters())


def test_order_and_duplication_of_images_do_not_matter() -> None:
    teacher = network()
    loss = built(teacher, competition=1.0)
    inputs = images()
    value = value_of(loss, teacher, inputs)
    twice = value_of(loss, teacher, torch.cat([inputs, inputs]))
    torch.testing.assert_close(twice, value)
    torch.testing.assert_close(value_of(loss, teacher, inputs.flip(0)), value)


def test_one_constant_image_has_finite_gradients() -> None:
    teacher = network()
    loss = built(teacher, competition=1.0)
    inputs = torch.zeros(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    value = value_of(loss, teacher, inputs)
    (gradient,) = torch.autograd.grad(value, inputs)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_watches_images_with_a_gradient_once_and_alone() -> None:
    teacher = network()
    loss = built(teacher)
    inputs = images()
    student = Output(student_logits(inputs))
    value = value_of(loss, teacher, inputs)
    target = Output(teacher(inputs.detach()))
    # A forward pass without gradients leaves nothing, and what is there is read once.
    with pytest.raises(UserError, match="the teacher has not seen images of a generat"):
        loss(student, target, batch_of(inputs))
    # Another teacher, or a second build, does not count twice.
    probe = Probe(Output(torch.zeros(2, 4)), modules={"norm": teacher[1]})
    loss.build(probe, probe)
    assert len(teacher[1]._forward_pre_hooks) == 1
    torch.testing.assert_close(value_of(loss, teacher, inputs), value)
    assert loss.state_dict() == {}
    # A copy of both watches the copy.
    both = copy.deepcopy([loss, teacher])
    twin: Any = both[0]
    twin_teacher: Any = both[1]
    torch.testing.assert_close(value_of(twin, twin_teacher, inputs), value)


def test_layers_count_with_what_is_inside_them() -> None:
    teacher = network()
    loss = DeepInversion(layers=["all", "norm"])
    modules = {"all": teacher, "norm": teacher[1]}
    probe = Probe(Output(torch.zeros(2, 4)), modules=modules)
    loss.build(probe, probe)
    assert len(loss._norms) == 1
    assert loss.teacher_roles == {"all", "norm"}
    assert DeepInversion(statistics=0.0).teacher_roles == set()
    assert loss.student_roles == set()


def test_mistakes() -> None:
    teacher = network()
    inputs = images()
    plain = Probe(Output(torch.zeros(2, 4)), modules={"norm": teacher[0]})
    with pytest.raises(UserError, match="layers norm have no batch normalization"):
        DeepInversion(layers=["norm"]).build(plain, plain)
    with pytest.raises(UserError, match="DeepInversion needs a teacher"):
        DeepInversion().build(plain, None)
    with pytest.raises(UserError, match="needs a teacher; use DataFreeModule"):
        built(teacher)(Output(inputs), None, batch_of(inputs))
    vectors = Batch(torch.zeros(2, 3), torch.zeros(2).long(), torch.arange(2))
    logits = Output(torch.zeros(2, 4))
    with pytest.raises(UserError, match=r"needs images .* set variation to 0"):
        DeepInversion(statistics=0.0)(logits, logits, vectors)
    for name in ("one_hot", "statistics", "variation", "competition"):
        options: dict[str, Any] = {name: -1.0}
        with pytest.raises(UserError, match=f"DeepInversion: {name} must be a finite"):
            DeepInversion(**options)
    with pytest.raises(UserError, match="DeepInversion: temperature must be a finite"):
        DeepInversion(temperature=0.0)
