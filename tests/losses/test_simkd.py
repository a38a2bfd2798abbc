from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses import Probe
from kd_lightning.losses.simkd import SimKD, projector
from kd_lightning.runs.launch import launch
from kd_lightning.spec import Spec
from tests.losses import features, properties, sheet
from tests.losses.features import case_of, feature_case, identical_connector, made
from tests.losses.properties import Case, Make, value_of
from tests.reference import fitnets, heads
from tests.reference.at import averaged_down, smaller
from tests.training.small import last

STUDENT: features.Shapes = {"map": (2, 3, 2)}
TEACHER: features.Shapes = {"map": (4, 3, 2)}
LARGER: features.Shapes = {"map": (4, 5, 1)}

sizes = pytest.mark.parametrize(
    "teacher", [TEACHER, LARGER], ids=["one size", "two sizes"]
)


def head_of(case: Case) -> dict[str, nn.Module]:
    head = nn.Linear(case.teacher.features["map"].shape[1], 3)
    with torch.no_grad():
        head.weight.copy_(
            torch.linspace(-1, 2, head.weight.numel()).view_as(head.weight)
        )
        head.bias.copy_(torch.tensor([0.5, -0.5, 0.25]))
    return {"head": head}


def loss_of(case: Case, prepare: Any = lambda loss: None) -> Make:
    return made(SimKD, case, prepare, teacher_modules=head_of(case))


@sizes
@pytest.mark.parametrize(
    "check", [c for c in features.WITH_ADAPTERS if c is not features.half_adapters]
)
def test_properties(check: properties.Check, teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    check(loss_of(case), case)


def test_half_adapters() -> None:
    """Three layers in half precision: within a tenth."""
    case = feature_case(STUDENT, TEACHER)
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        typed = properties.cast(case, dtype)
        loss = loss_of(case)().to(dtype)
        values.append(loss(typed.student, typed.teacher, typed.batch))
    assert values[1].dtype == torch.float32
    assert values[1].item() == pytest.approx(values[0].item(), rel=0.1)


@sizes
def test_agrees_with_reference(teacher: features.Shapes) -> None:
    case = feature_case(STUDENT, teacher)
    loss: Any = loss_of(case)().double()
    hints = case.teacher.features["map"].tolist()
    maps = case.student.features["map"].tolist()
    size = smaller(maps[0][0], hints[0][0])
    maps, hints = (
        [[averaged_down(channel, *size) for channel in sample] for sample in side]
        for side in (maps, hints)
    )
    for layer in loss.projector:
        if isinstance(layer, nn.Conv2d):
            zeros = [0.0] * layer.out_channels
            weight, padding = layer.weight.tolist(), layer.kernel_size[0] // 2
            maps = [
                fitnets.convolved(sample, weight, zeros, 1, padding) for sample in maps
            ]
            maps = fitnets.batch_normalized(maps)
            maps = [fitnets.rectified(sample) for sample in maps]
    expected = heads.mean_square(
        [heads.flat(sample) for sample in maps],
        [heads.flat(sample) for sample in hints],
    )
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(expected, rel=1e-9)

    predicted = loss.predict(case.student, case.batch)
    weight, bias = loss.classifier.weight.tolist(), loss.classifier.bias.tolist()
    logits = [heads.logits(heads.pooled(sample), weight, bias) for sample in maps]
    torch.testing.assert_close(
        predicted.logits, torch.tensor(logits, dtype=torch.float64)
    )
    assert predicted.features is case.student.features


def identical(loss: Any) -> None:
    """A projector that gives back a map that is not negative."""
    loss.projector = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    identical_connector(loss.projector)


def test_value_of_the_sheet() -> None:
    case = case_of(sheet.STUDENT, sheet.TEACHER, role="map")
    assert value_of(loss_of(case, identical), case).item() == pytest.approx(1.375)


def test_by_hand() -> None:
    # Maps of two channels, (1, 3) and (0, 2) against (1, 1) and (0, 0): squares 0, 4, 0, 4.
    # The classifier sees the means 2 and 1.
    case = case_of(
        [[[[1.0, 3.0]], [[0.0, 2.0]]]], [[[[1.0, 1.0]], [[0.0, 0.0]]]], role="map"
    )
    head = nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    make = made(SimKD, case, identical, teacher_modules={"head": head})
    assert value_of(make, case).item() == pytest.approx(2.0)
    loss: Any = make().double()
    assert loss.predict(case.student, case.batch).logits.tolist() == [[2.0, 1.0, 1.0]]


@pytest.mark.parametrize(("reduction", "width"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_the_inner_convolutions_have_fewer_channels(reduction: int, width: int) -> None:
    layers = [m for m in projector(5, 8, reduction) if isinstance(m, nn.Conv2d)]
    assert [layer.in_channels for layer in layers] == [5, width, width]
    assert [layer.out_channels for layer in layers] == [width, width, 8]


def test_minimum_where_the_projector_gives_the_teachers_map() -> None:
    case = feature_case({"map": (2, 3, 3)}, {"map": (2, 3, 3)})
    best = Case(case.teacher, case.teacher, case.batch)
    properties.minimum(loss_of(case, identical), best)


def test_the_classifier_never_trains(tmp_path: Path) -> None:
    module = features.residual(SimKD())
    loss: Any = module.losses["own"]
    teacher: Any = module.teacher
    torch.testing.assert_close(loss.classifier.weight, teacher.network.head.weight.data)
    assert not any(name.startswith("classifier") for name, _ in loss.named_parameters())
    before = loss.classifier.weight.clone()
    features.fitted(module)
    assert torch.equal(loss.classifier.weight, before)


def test_trains_residual_networks(tmp_path: Path) -> None:
    features.trains(SimKD, tmp_path)


def test_method_file(tmp_path: Path) -> None:
    """The loss alone; what is evaluated is the teacher's classifier, also from the checkpoint."""
    run = features.run_method("simkd", tmp_path)
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_simkd"], rel=1e-5
    )
    state = features.checkpoint_of(run)["state_dict"]
    assert {"losses.simkd.classifier.weight", "losses.simkd.projector.0.weight"} <= set(
        state
    )
    teacher: Any = run.module.teacher
    assert torch.equal(
        state["losses.simkd.classifier.weight"], teacher.network.head.weight
    )

    config = ["-c", str(run.folder / "config.yaml"), f"--ckpt_path={last(run)}"]
    tested = launch(["test", *config, f"--run.dir={tmp_path / 'test'}"])
    loaded: Any = tested.module.losses["simkd"]
    assert torch.equal(
        loaded.projector[0].weight, state["losses.simkd.projector.0.weight"]
    )
    # The student's own classifier, which never trained, plays no part.
    nn.init.zeros_(loaded.classifier.weight)
    case = feature_case({"map": (64, 2, 2)}, {"map": (128, 2, 2)})
    student = case.student.map(torch.Tensor.float)
    with torch.no_grad():
        logits = tested.module.objective.predict(student, case.batch).logits
    torch.testing.assert_close(logits, loaded.classifier.bias.expand_as(logits))


def test_evaluation_predicts_with_the_teachers_classifier() -> None:
    module = features.residual(SimKD())
    objective = module.objective
    assert objective.predicts
    loss: Any = module.losses["own"]
    case = feature_case({"map": (64, 2, 2)}, {"map": (128, 2, 2)})
    with torch.no_grad():
        expected = loss.eval().predict(case.student.map(torch.Tensor.float), case.batch)
        found = objective.predict(case.student.map(torch.Tensor.float), case.batch)
    assert found.logits.shape == (4, 10)
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": ""}, "SimKD: layer must be the role of a layer"),
        ({"head": ""}, "SimKD: head must be the role of a layer"),
        ({"reduction": 0}, "SimKD: reduction must be a whole number from 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SimKD(**arguments)


def test_bad_heads_data_and_calls_before_build() -> None:
    case = feature_case(STUDENT, TEACHER)
    student = features.probe(case.student)
    for head, words in (
        (nn.ReLU(), "the teacher's layer 'head' is a ReLU; name its classifier"),
        (nn.Linear(4, 2), "name its classifier, a Linear layer with 3 outputs"),
        (
            nn.Linear(5, 3),
            "the teacher's classifier reads 5 values, but its layer has 4 channels",
        ),
    ):
        with pytest.raises(UserError, match=words):
            SimKD().build(student, features.probe(case.teacher, {"head": head}))
    with pytest.raises(UserError, match="SimKD needs a teacher"):
        SimKD().build(student, None)
    with pytest.raises(UserError, match="SimKD has no adapters yet"):
        SimKD()(case.student, case.teacher, case.batch)
    pixels = Probe(student.output, Spec(data="pixels", target_shape=(2, 2)))
    with pytest.raises(UserError, match="SimKD needs one label per sample"):
        SimKD().build(pixels, features.probe(case.teacher, head_of(case)))
