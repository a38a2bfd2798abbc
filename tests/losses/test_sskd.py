from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.sskd import SSKD, Stage, kept_kl, kept_rows, views_of
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.losses import features, properties
from tests.losses.features import made
from tests.losses.properties import Case, Make
from tests.reference import sskd as reference
from tests.training.small import CONFIGS, copied, last

IMAGES, VIEWS, CLASSES = 5, 4, 6
stages = pytest.mark.parametrize("stage", get_args(Stage))


def view_case(seed: int = 0, shape: tuple[int, ...] = ()) -> Case:
    """Five images in four views: logits, and a student's and a teacher's features of other widths."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(IMAGES * VIEWS, *shape, generator=rng, dtype=torch.float64)

    labels = torch.randint(CLASSES, (IMAGES,), generator=rng)
    unlabelled = torch.full((3 * IMAGES,), UNLABELLED)
    batch = Batch(
        torch.zeros(IMAGES * VIEWS, 1),
        torch.cat([labels, unlabelled]),
        torch.arange(10, 10 + IMAGES).repeat(VIEWS),
        torch.arange(8, 8 + VIEWS).repeat_interleave(IMAGES),
    )
    student = Output(draw(CLASSES), {"penultimate": draw(3, *shape)})
    teacher = Output(draw(CLASSES), {"penultimate": draw(4, *shape)})
    return Case(student, teacher, batch)


def loss_of(case: Case, stage: Stage = "student", **arguments: Any) -> Make:
    return made(partial(SSKD, stage=stage, **arguments), case)


@pytest.mark.parametrize(
    "check",
    [
        properties.batch_order,
        properties.saturated,
        partial(properties.half_precision, rtol=0.05),
        properties.double_gradients,
        properties.gradient_reach,
    ],
)
def test_properties(check: properties.Check) -> None:
    case = view_case()
    check(loss_of(case), case)


@stages
def test_finite_for_odd_features(stage: Stage) -> None:
    case = view_case()
    for kind in (torch.zeros_like, lambda x: 1e4 * x.sign()):
        extreme = properties.both(case, kind)
        loss: Any = loss_of(extreme, stage)().double()
        value = loss(extreme.student, extreme.teacher, extreme.batch)
        value.backward()
        assert value.isfinite()
        gradients = [p.grad for p in loss.parameters() if p.grad is not None]
        assert gradients
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@stages
def test_gradients_reach_the_part_that_trains(stage: Stage) -> None:
    case = view_case()
    loss: Any = loss_of(case, stage)().double()
    student = properties.change(case.student, properties.leaf)
    teacher = properties.change(case.teacher, properties.leaf)
    torch.autograd.backward(loss(student, teacher, case.batch))
    for name, parameter in loss.named_parameters():
        trains = name.startswith("teacher" if stage == "head" else "student")
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name
    assert all(tensor.grad is None for tensor in properties.tensors(teacher))
    learns = [tensor.grad is not None for tensor in properties.tensors(student)]
    assert learns == [stage == "student"] * 2


def heads(loss: Any, name: str, features: Tensor) -> list[list[float]]:
    """What the reference's layers make of features with the numbers of a head."""
    first, _, second = loss.get_submodule(f"{name}_head")
    rows = []
    for feature in features.tolist():
        hidden = reference.linear(feature, first.weight.tolist(), first.bias.tolist())
        hidden = [max(0.0, value) for value in hidden]
        rows.append(
            reference.linear(hidden, second.weight.tolist(), second.bias.tolist())
        )
    return rows


def cosine_rows(loss: Any, name: str, output: Output) -> list[list[float]]:
    rows = heads(loss, name, output.features["penultimate"])
    views = [rows[at : at + IMAGES] for at in range(0, len(rows), IMAGES)]
    return reference.cosine_rows(views[0], views[1:])


def test_head_agrees_with_reference() -> None:
    case = view_case()
    loss: Any = loss_of(case, "head")().double()
    expected = reference.contrast(cosine_rows(loss, "teacher", case.teacher), IMAGES)
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shares", [(1.0, 0.75), (0.3, 0.5), (0.0, 0.0)])
def test_student_agrees_with_reference(seed: int, shares: tuple[float, float]) -> None:
    case = view_case(seed)
    arguments = dict(zip(("keep_transformed", "keep_contrast"), shares, strict=True))
    loss: Any = loss_of(case, "student", **arguments)().double()
    own = case.student.logits.tolist()
    target = case.teacher.logits.tolist()
    labels = case.batch.target[:IMAGES].tolist()
    everything = list(range(IMAGES))
    originals = reference.divergence(own, target, everything, 4.0)
    rows = reference.kept(target[IMAGES:], labels * 3, shares[0], 4.0)
    transformed = reference.divergence(own[IMAGES:], target[IMAGES:], rows, 4.0)
    own_cosines = cosine_rows(loss, "student", case.student)
    target_cosines = cosine_rows(loss, "teacher", case.teacher)
    rows = reference.kept(target_cosines, everything * 3, shares[1], 0.5)
    contrast = reference.divergence(own_cosines, target_cosines, rows, 0.5)
    expected = 0.9 * originals + 2.7 * transformed + 10 * contrast
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert transformed > 0 or shares[0] == 0


def test_maps_are_pooled() -> None:
    case = view_case(shape=(2, 3))
    vectors = [
        replace(
            output,
            features={"penultimate": output.features["penultimate"].mean((2, 3))},
        )
        for output in (case.student, case.teacher)
    ]
    flat = Case(vectors[0], vectors[1], case.batch)
    maps = properties.value_of(loss_of(case), case)
    assert maps.item() == pytest.approx(properties.value_of(loss_of(flat), flat).item())


def test_all_rows_alike_are_soft_targets_of_all_views() -> None:
    """Nothing left out, equal weights a row: 0.9 + 2.7 is KD of 3.6 on all four views."""
    case = view_case()
    value = properties.value_of(loss_of(case, contrast=0.0), case)
    everything = torch.ones(IMAGES * VIEWS, dtype=torch.bool)
    divergence = kept_kl(
        case.student.log_probs(4.0), case.teacher.log_probs(4.0), everything, 4.0
    )
    assert value.item() == pytest.approx(3.6 * divergence.item())


def test_kept_by_hand() -> None:
    """Ranks of the truth: 0, 1, 2, 1, 3; of the four wrong rows three quarters are the first three."""
    log_probs = torch.tensor(
        [
            [0.7, 0.1, 0.1, 0.1],
            [0.5, 0.3, 0.1, 0.1],
            [0.5, 0.3, 0.15, 0.05],
            [0.6, 0.2, 0.1, 0.1],
            [0.4, 0.3, 0.2, 0.1],
        ]
    ).log()
    truth = torch.tensor([0, 1, 2, 1, 3])
    assert kept_rows(log_probs, truth, 0.75).tolist() == [True] * 4 + [False]
    assert kept_rows(log_probs, truth, 0.7).tolist() == [True, True, False, True, False]
    # Of equal ranks the larger probability of the truth comes first.
    assert kept_rows(log_probs, truth, 0.25).tolist() == [True, True] + [False] * 3
    assert kept_rows(log_probs, truth, 0.0).tolist() == [True] + [False] * 4
    assert kept_rows(log_probs, truth, 1.0).all()
    unknown = torch.tensor([UNLABELLED, 1, 2, 1, 3])
    assert kept_rows(log_probs, unknown, 0.8).tolist() == [False] + [True] * 4


def test_views_by_hand() -> None:
    view = torch.tensor([4, 4, 5, 7, 5, 7])
    index = torch.tensor([8, 3, 8, 3, 3, 8])
    found = views_of(view, index)
    assert found.originals.tolist() == [0, 1]
    assert found.transformed.tolist() == [2, 3, 4, 5]
    assert found.source.tolist() == [0, 1, 1, 0]


def test_a_head_that_tells_nothing_apart_costs_a_guess() -> None:
    case = view_case()

    def flatten(loss: Any) -> None:
        for parameter in loss.teacher_head.parameters():
            parameter.data.zero_()

    loss = made(partial(SSKD, stage="head"), case, prepare=flatten)().double()
    value = loss(case.student, case.teacher, case.batch)
    assert value.item() == pytest.approx(math.log(IMAGES))


def test_one_image_has_no_contrast() -> None:
    case = properties.select(view_case(), torch.arange(0, IMAGES * VIEWS, IMAGES))
    value, gradients = properties.gradients_of(loss_of(case), case)
    assert value.isfinite()
    assert not gradients[1].any()


def test_two_stages(tmp_path: Path) -> None:
    """The head alone on four views of each image, then the student, joined by `init_from`."""
    first = features.run_method("sskd_head", tmp_path / "first")
    learned = {
        key: value.clone()
        for key, value in first.module.losses["sskd"].state_dict().items()
    }
    assert learned["head_steps"] == 2
    start = copied(first.module.net)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="SSKD: the teacher's head is random")
        second = features.run_method(
            "sskd", tmp_path / "second", f"--model.init_from={last(first)}"
        )
    assert second.metrics["train_loss"] == pytest.approx(
        0.1 * second.metrics["train_loss_ce"] + second.metrics["train_loss_sskd"],
        rel=1e-5,
    )
    content = features.checkpoint_of(second)["state_dict"]
    for key, value in learned.items():
        same = torch.equal(content[f"losses.sskd.{key}"], value)
        assert same == (not key.startswith("student")), key
    assert any(
        not torch.equal(value, start[name])
        for name, value in copied(second.module.net).items()
    )


def test_configs_show_four_views() -> None:
    for name in ("sskd", "sskd_head"):
        text = (CONFIGS / "methods" / f"{name}.yaml").read_text()
        assert "copies: 4" in text


def test_a_random_head_is_reported() -> None:
    loss = loss_of(view_case())()
    with pytest.warns(UserWarning, match="SSKD: the teacher's head is random"):
        loss.on_epoch_start(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "SSKD: layer must be the role of a layer"),
        ({"stage": "both"}, "SSKD: stage must be 'head' or 'student', got 'both'"),
        ({"contrast": -1}, "SSKD: contrast must be a finite number of at least 0"),
        ({"temperature": 0}, "SSKD: temperature must be a finite number greater"),
        ({"keep_contrast": 1.5}, r"SSKD: keep_contrast must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SSKD(**arguments)


def test_needs_a_teacher_build_and_views() -> None:
    case = view_case()
    with pytest.raises(UserError, match="SSKD needs a teacher"):
        SSKD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="SSKD has no adapters yet"):
        SSKD()(case.student, case.teacher, case.batch)
    single = replace(case.batch, view=3)
    with pytest.raises(UserError, match=r"the batch holds one; set data\.copies=4"):
        loss_of(case)()(case.student, case.teacher, single)
