from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses.mgd import MGD, Masked, draw_mask
from tests.losses import features, properties
from tests.losses.features import case_of, feature_case, made
from tests.losses.properties import Case, Make, select, value_of
from tests.reference import mgd as reference
from tests.reference.at import averaged_down, smaller
from tests.reference.fitnets import convolved

STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (4, 3, 2)}
LARGER: features.Shapes = {"map": (4, 5, 1)}

forms = pytest.mark.parametrize("masked", get_args(Masked))
sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def loss_of(masked: Masked, case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(partial(MGD, masked=masked, probability=0.4), case, prepare)


@forms
@sizes
@pytest.mark.parametrize("check", [*features.WITH_ADAPTERS, properties.batch_size])
def test_properties(
    check: properties.Check, teacher: features.Shapes, masked: Masked
) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(masked, case), case)


@forms
@sizes
def test_agrees_with_reference(teacher: features.Shapes, masked: Masked) -> None:
    case = feature_case(STUDENT, teacher)
    loss: Any = loss_of(masked, case)().double()
    weight, bias = loss.adapter.weight.tolist(), loss.adapter.bias.tolist()
    maps = [
        convolved(sample, weight, bias)
        for sample in case.student.features["map"].tolist()
    ]
    hints = case.teacher.features["map"].tolist()
    size = smaller(maps[0][0], hints[0][0])
    maps, hints = (
        [[averaged_down(channel, *size) for channel in sample] for sample in side]
        for side in (maps, hints)
    )
    shape = torch.empty(4, 4, *size)
    masks = loss.mask(shape, case.batch.index).expand_as(shape).tolist()
    layers = [layer for layer in loss.generator if isinstance(layer, nn.Conv2d)]
    weights = []
    for layer in layers:
        assert layer.bias is not None
        weights.append((layer.weight.tolist(), layer.bias.tolist()))
    made_up = [
        reference.generated(m, k, weights) for m, k in zip(maps, masks, strict=True)
    ]
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(reference.distance(made_up, hints), rel=1e-9)


def test_by_hand() -> None:
    # The generator doubles a map that is not negative; nothing is masked. (1, 2) becomes (2, 4)
    # against (2, 1): squares 0 and 9. The second sample agrees.
    def doubling(loss: Any) -> None:
        loss.probability = 0.0
        for place, factor in ((0, 1.0), (2, 2.0)):
            nn.init.zeros_(loss.generator[place].weight)
            nn.init.zeros_(loss.generator[place].bias)
            loss.generator[place].weight.data[0, 0, 1, 1] = factor

    case = case_of(
        [[[[1.0, 2.0]]], [[[3.0, 0.5]]]], [[[[2.0, 1.0]]], [[[6.0, 1.0]]]], role="map"
    )
    assert value_of(loss_of("channels", case, doubling), case).item() == pytest.approx(
        4.5
    )


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.65])
def test_masks_have_their_probability(probability: float) -> None:
    mask = draw_mask(torch.arange(200), torch.tensor(3), 100, probability)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert 1 - mask.mean().item() == pytest.approx(probability, abs=0.015)
    assert (1 - mask.mean(0) - probability).abs().max() < 0.15
    assert (1 - mask.mean(1) - probability).abs().max() < 0.25


def test_masks_are_a_function_of_seed_step_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = torch.arange(50)
    first = draw_mask(index, torch.tensor(0), 40, 0.5)
    assert torch.equal(
        draw_mask(index.flip(0), torch.tensor(0), 40, 0.5).flip(0), first
    )
    others = [
        draw_mask(index, torch.tensor(1), 40, 0.5),
        first.roll(1, 0),
        first.roll(1, 1),
    ]
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    others.append(draw_mask(index, torch.tensor(0), 40, 0.5))
    for other in others:
        assert 0.4 < (other == first).float().mean() < 0.6


def test_each_step_masks_anew() -> None:
    case = feature_case(STUDENT, TEACHER)
    loss: Any = loss_of("channels", case)().double()
    values = []
    for _ in range(4):
        values.append(loss(case.student, case.teacher, case.batch).item())
        assert loss(case.student, case.teacher, case.batch).item() == values[-1]
        loss.after_step()
    assert len(set(values)) == 4
    assert loss.state_dict()["steps"] == 4


def test_masked_channels_do_not_matter() -> None:
    case = feature_case(TEACHER, TEACHER)
    loss: Any = loss_of("channels", case)().double()
    student = case.student.features["map"].clone().requires_grad_()
    output = replace(case.student, features={"map": student})
    (gradient,) = torch.autograd.grad(loss(output, case.teacher, case.batch), student)
    masked = loss.mask(student, case.batch.index)[:, :, 0, 0] == 0
    assert masked.any()
    assert torch.equal(gradient.abs().sum((2, 3)) == 0, masked)
    one = select(case, torch.arange(1))
    assert loss(one.student, one.teacher, one.batch) > 0


def test_trains_residual_networks(tmp_path: Path) -> None:
    module = features.trains(partial(MGD, weight=1e-3), tmp_path)
    assert module.losses["own"].get_buffer("steps") == 2


def test_method_file(tmp_path: Path) -> None:
    run = features.run_method("mgd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + 1.2e-3 * run.metrics["train_loss_mgd"], rel=1e-5
    )
    state = features.checkpoint_of(run)["state_dict"]
    assert state["losses.mgd.steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "MGD: layer must be the role of a layer"),
        (
            {"masked": "rows"},
            "MGD: masked must be 'channels' or 'positions', got 'rows'",
        ),
        (
            {"probability": 1.0},
            "MGD: probability must be a number from 0 to less than 1, got 1.0",
        ),
        (
            {"probability": -0.1},
            "MGD: probability must be a number from 0 to less than 1",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MGD(**arguments)


def test_needs_a_teacher_and_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    with pytest.raises(UserError, match="MGD needs a teacher"):
        MGD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="MGD has no adapters yet"):
        MGD()(case.student, case.teacher, case.batch)
