from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import CAMKD, KD, CrossEntropy
from kd_lightning.models import CIFARResNet
from kd_lightning.teachers import EnsembleTeacher, ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import UNLABELLED, EnsembleOutput, mean_log_probs
from tests.losses import features, properties
from tests.losses.features import LAYERS, feature_case, fitted, made
from tests.losses.properties import Case, Make
from tests.losses.test_simkd import head_of
from tests.reference import fitnets, heads
from tests.reference import multiteacher as reference
from tests.training.small import copied, same

SIZES: dict[str, list[tuple[int, ...]]] = {
    "one size": [(4, 3, 2), (5, 3, 2)],
    "two sizes": [(4, 5, 1), (5, 2, 2)],
}
STUDENT: features.Shapes = {"map": (2, 3, 2)}
sizes = pytest.mark.parametrize("shapes", SIZES.values(), ids=SIZES)


def several(shapes: list[tuple[int, ...]], rows: int = 4) -> Case:
    """A case with one teacher per shape of a last map."""
    teacher = {f"{number}.map": shape for number, shape in enumerate(shapes)}
    case = feature_case(STUDENT, teacher, rows)
    rng = torch.Generator().manual_seed(3)
    members = torch.randn(rows, len(shapes), 3, generator=rng, dtype=torch.float64)
    weights = torch.full((len(shapes),), 1 / len(shapes), dtype=torch.float64)
    logits = mean_log_probs(members, weights)
    output = EnsembleOutput(
        logits, case.teacher.features, members=members, weights=weights
    )
    batch = replace(case.batch, target=torch.arange(rows) % 3)
    return Case(case.student, output, batch)


def classifiers(shapes: list[tuple[int, ...]]) -> dict[str, nn.Module]:
    """A linear classifier per teacher, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made_heads = [nn.Linear(shape[0], 3) for shape in shapes]
    return {f"{number}.head": head for number, head in enumerate(made_heads)}


def loss_of(case: Case, shapes: list[tuple[int, ...]], **arguments: Any) -> Make:
    loss = partial(CAMKD, teachers=len(shapes), **arguments)
    return made(loss, case, teacher_modules=classifiers(shapes))


@sizes
@pytest.mark.parametrize("check", features.WITH_ADAPTERS)
def test_properties(check: properties.Check, shapes: list[tuple[int, ...]]) -> None:
    case = several(shapes)
    check(loss_of(case, shapes, features=1.0), case)


def vectors_of(loss: Any, number: int, case: Case) -> list[Any]:
    """The student's maps through the connector of a teacher, with the reference's layers."""
    weight = loss.connectors[number][0][0].weight.tolist()
    bias = [0.0] * len(weight)
    maps = []
    for sample in case.student.features["map"].tolist():
        maps.append(fitnets.convolved(sample, weight, bias))
    return [fitnets.rectified(sample) for sample in fitnets.batch_normalized(maps)]


def test_agrees_with_reference() -> None:
    shapes = SIZES["one size"]
    case = several(shapes)
    loss: Any = loss_of(case, shapes)().double()
    assert isinstance(case.teacher, EnsembleOutput)
    labels = case.batch.target.tolist()
    members = case.teacher.members.tolist()
    shares = [
        reference.by_label(row, label)
        for row, label in zip(members, labels, strict=True)
    ]
    expected = reference.weighted(case.student.logits.tolist(), members, shares, 4.0)
    maps = [vectors_of(loss, number, case) for number in (0, 1)]
    total = 0.0
    for at, label in enumerate(labels):
        logits = []
        costs = []
        for number in (0, 1):
            own = maps[number][at]
            head = loss.classifiers[number]
            logits.append(
                heads.logits(
                    heads.pooled(own), head.weight.tolist(), head.bias.tolist()
                )
            )
            target = case.teacher.features[f"{number}.map"][at]
            difference = torch.tensor(own, dtype=torch.float64) - target
            costs.append(difference.square().mean().item())
        for share, cost in zip(reference.by_label(logits, label), costs, strict=True):
            total += share * cost
    expected += 50 * total / len(labels)
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_features_begin_with_the_second_epoch() -> None:
    shapes = SIZES["one size"]
    case = several(shapes)
    loss: Any = loss_of(case, shapes, start=2)().double()
    without: Any = loss_of(case, shapes, features=0.0)().double()
    soft = without(case.student, case.teacher, case.batch)
    values = []
    for epoch in (2, 3):
        loss.on_epoch_start(epoch)
        values.append(loss(case.student, case.teacher, case.batch))
    assert values[0].item() == pytest.approx(soft.item())
    assert values[1] > 2 * soft
    # The connectors have a gradient in the first epoch too, as several processes require.
    values[0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_one_teacher_is_soft_targets_and_a_hint() -> None:
    case = feature_case(STUDENT, {"map": (4, 3, 2)})
    make = made(partial(CAMKD, features=0.0), case, teacher_modules=head_of(case))
    found = properties.gradients_of(make, case)
    expected = properties.gradients_of(partial(KD, temperature=4.0), case)
    torch.testing.assert_close(found, expected)


def test_equal_teachers_are_one() -> None:
    shapes: list[tuple[int, ...]] = [(4, 3, 2)]
    one = several(shapes)
    assert isinstance(one.teacher, EnsembleOutput)
    feature = one.teacher.features["0.map"]
    members = one.teacher.members.expand(-1, 2, -1)
    both = EnsembleOutput(
        one.teacher.logits,
        {"0.map": feature, "1.map": feature},
        members=members,
        weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
    )
    two = replace(one, teacher=both)

    def share(loss: Any) -> None:
        loss.connectors[1] = loss.connectors[0]
        loss.classifiers[1] = loss.classifiers[0]

    head = classifiers(shapes)["0.head"]
    single = made(
        CAMKD,
        replace(one, teacher=replace(one.teacher, features={"map": feature})),
        teacher_modules={"head": head},
    )
    double = made(
        partial(CAMKD, teachers=2),
        two,
        share,
        teacher_modules={"0.head": head, "1.head": head},
    )
    alone = replace(one, teacher=replace(one.teacher, features={"map": feature}))
    expected = properties.value_of(single, alone)
    assert properties.value_of(double, two).item() == pytest.approx(expected.item())


def test_unlabelled_samples_weigh_teachers_alike() -> None:
    shapes = SIZES["one size"]
    case = several(shapes)
    case.batch.target[:] = UNLABELLED
    loss: Any = loss_of(case, shapes, features=0.0)().double()
    assert isinstance(case.teacher, EnsembleOutput)
    members = case.teacher.members.tolist()
    shares = [[0.5, 0.5]] * len(members)
    expected = reference.weighted(case.student.logits.tolist(), members, shares, 4.0)
    found = loss(case.student, case.teacher, case.batch).item()
    assert found == pytest.approx(expected)


def network(seed: int, width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CIFARResNet(8, width, input_shape=[1, 8, 8], num_classes=10)


def trained(folder: Path) -> tuple[DistillationModule, dict[str, Tensor]]:
    """Two epochs with two unlike teachers, and a run that is resumed after the first."""
    modules = []
    for _ in range(3):
        members = [
            ModelTeacher(network=network(seed, width), layers=LAYERS)
            for seed, width in ((1, 2), (2, 3))
        ]
        torch.manual_seed(0)
        module = DistillationModule(
            network(0, 1),
            EnsembleTeacher([*members]),
            {"ce": CrossEntropy(), "camkd": CAMKD(teachers=2)},
            layers=LAYERS,
        )
        module.attach(DigitsDataModule())
        modules.append(module)
    whole, first, resumed = modules
    fitted(whole, epochs=2)
    fitted(first).save_checkpoint(folder / "one.ckpt")
    fitted(resumed, epochs=2, ckpt_path=str(folder / "one.ckpt"))
    return whole, copied(resumed)


def test_two_unlike_teachers_train_a_student(tmp_path: Path) -> None:
    whole, resumed = trained(tmp_path)
    assert same(copied(whole), resumed)
    loss: Any = whole.losses["camkd"]
    widths = {part[0][0].weight.shape[0] for part in loss.connectors}
    assert len(widths) == 2
    assert all(p.grad is None for p in whole.teacher.parameters())


def test_refusals() -> None:
    shapes = SIZES["one size"]
    case = several(shapes)
    with pytest.raises(UserError, match="CAMKD: teachers must be a whole number"):
        CAMKD(teachers=0)
    with pytest.raises(UserError, match=r"teachers is 1, but model\.teacher has 2"):
        made(CAMKD, case, teacher_modules=classifiers(shapes))()
    with pytest.raises(UserError, match="CAMKD needs a teacher"):
        CAMKD().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="CAMKD has no adapters yet"):
        CAMKD()(case.student, case.teacher, case.batch)
