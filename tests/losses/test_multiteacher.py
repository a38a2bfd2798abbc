from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import KD, MultiTeacher
from kd_lightning.losses.base import Probe
from kd_lightning.losses.multiteacher import (
    ClassRouting,
    ColumnRouting,
    ConfidenceWeights,
    EntropyWeights,
    FixedWeights,
    LearnedWeights,
    TeacherWeights,
    UniformWeights,
)
from kd_lightning.spec import Spec
from kd_lightning.teachers import (
    CachedTeacher,
    EnsembleTeacher,
    ModelTeacher,
    Teacher,
    cache_teacher,
)
from kd_lightning.types import (
    UNLABELLED,
    Batch,
    EnsembleOutput,
    Output,
    mean_log_probs,
)
from tests.losses import features, properties
from tests.losses.properties import Case, Make, random_case
from tests.losses.response import case_of, example
from tests.reference import multiteacher as reference
from tests.training.small import mlp

CLASSES = 5
Weighting = Callable[[], TeacherWeights]
WEIGHTINGS: dict[str, Weighting] = {
    "uniform": UniformWeights,
    "fixed": partial(FixedWeights, [3.0, 1.0, 4.0]),
    "entropy": EntropyWeights,
    "softer entropy": partial(EntropyWeights, 2.0),
    "confidence": ConfidenceWeights,
    "learned": LearnedWeights,
    "class": partial(ClassRouting, [2, 0, 1, 0, 2]),
}
weightings = pytest.mark.parametrize("name", WEIGHTINGS)


def ensemble(members: Tensor) -> EnsembleOutput:
    """The output of an arithmetic ensemble, for `(N, M, K)` logits."""
    weights = members.new_full((members.shape[1],), 1 / members.shape[1])
    mean = mean_log_probs(members, weights)
    return EnsembleOutput(mean, members=members, weights=weights)


def several(case: Case, members: int = 3, equal: bool = False) -> Case:
    """The case with more teachers beside its own."""
    rng = torch.Generator().manual_seed(5)
    first = case.teacher.logits
    shape = (len(first), members, first.shape[1])
    logits = 2 * torch.randn(*shape, generator=rng, dtype=first.dtype)
    logits[:, 0] = first
    if equal:
        logits[:] = first[:, None]
    return replace(case, teacher=ensemble(logits))


def weighted(weighting: Weighting, case: Case, temperature: float = 4.0) -> Make:
    """A loss that is built for the case's classes and teachers."""

    def make() -> MultiTeacher:
        loss = MultiTeacher(weighting(), temperature)
        loss.build(features.probe(case.student), features.probe(case.teacher))
        return loss

    return make


@weightings
@pytest.mark.parametrize("check", [*properties.ALL, properties.batch_size])
def test_properties(name: str, check: properties.Check) -> None:
    case = several(random_case(classes=CLASSES))
    check(weighted(WEIGHTINGS[name], case), case)


def expected_weights(name: str, case: Case) -> list[list[float]]:
    """The weights of the reference, by row."""
    assert isinstance(case.teacher, EnsembleOutput)
    rows = case.teacher.members.tolist()
    labels = case.batch.target.tolist()
    if name == "entropy":
        return [reference.by_entropy(row) for row in rows]
    if name == "softer entropy":
        return [reference.by_entropy(row, 2.0) for row in rows]
    if name == "confidence":
        pairs = zip(rows, labels, strict=True)
        return [reference.by_label(row, label) for row, label in pairs]
    if name == "class":
        teachers = [[2, 0, 1, 0, 2][label] for label in labels]
        return [[float(m == teacher) for m in range(3)] for teacher in teachers]
    fixed = {"fixed": [0.375, 0.125, 0.5]}
    return [fixed.get(name, [1 / 3] * 3) for _ in rows]


@weightings
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_agrees_with_reference(name: str, temperature: float) -> None:
    for seed in range(3):
        case = several(random_case(classes=CLASSES, scale=2.0, seed=seed))
        assert isinstance(case.teacher, EnsembleOutput)
        members = case.teacher.members.tolist()
        shares = expected_weights(name, case)
        logits = case.student.logits.tolist()
        expected = reference.weighted(logits, members, shares, temperature)
        found = properties.value_of(weighted(WEIGHTINGS[name], case, temperature), case)
        assert found.item() == pytest.approx(expected, rel=1e-9)


@weightings
def test_weights_sum_to_one(name: str) -> None:
    case = several(random_case(rows=20, classes=CLASSES, scale=30.0))
    case.batch.target[:3] = UNLABELLED
    loss: Any = weighted(WEIGHTINGS[name], case)()
    assert isinstance(case.teacher, EnsembleOutput)
    weights = loss.weighting(case.teacher.members, case.batch)
    assert weights.shape == (20, 3)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64))
    if name in ("confidence", "class"):
        third = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        torch.testing.assert_close(weights[:3], third)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n not in ("fixed", "class")])
def test_equal_teachers_count_alike(name: str) -> None:
    case = several(random_case(classes=CLASSES), equal=True)
    loss: Any = weighted(WEIGHTINGS[name], case)()
    assert isinstance(case.teacher, EnsembleOutput)
    weights = loss.double().weighting(case.teacher.members, case.batch)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))


@pytest.mark.parametrize(
    "weighting",
    [
        UniformWeights,
        EntropyWeights,
        ConfidenceWeights,
        LearnedWeights,
        partial(FixedWeights, [7.0]),
        partial(ClassRouting, [0] * CLASSES),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_one_teacher_is_soft_targets(weighting: Weighting, alone: bool) -> None:
    case = random_case(classes=CLASSES)
    expected = properties.gradients_of(partial(KD, temperature=3.0), case)
    if not alone:
        case = several(case, members=1)
    found = properties.gradients_of(weighted(weighting, case, 3.0), case)
    torch.testing.assert_close(found, expected)


def test_uniform_has_the_gradient_of_the_mean_distribution() -> None:
    case = several(random_case(classes=CLASSES))
    _, expected = properties.gradients_of(partial(KD, temperature=4.0), case)
    _, found = properties.gradients_of(weighted(UniformWeights, case), case)
    torch.testing.assert_close(found[0], expected[0])


def test_values_of_the_sheet() -> None:
    """Of the student's and the teacher's logits as two teachers: (.5, .4408) and (.5, .5592)."""
    case = example()
    members = torch.stack([case.student.logits, case.teacher.logits], dim=1)
    weights = ConfidenceWeights()(members, case.batch)
    expected = [[0.5, 0.5], [0.4408, 0.5592]]
    torch.testing.assert_close(
        weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5
    )


def test_by_hand() -> None:
    """One teacher is sure (entropy 0) and one knows nothing: all weight is the first one's."""
    case = case_of([[0.0, 0.0]], [[0.0, 0.0]], [1])
    members = torch.tensor([[[0.0, 1e4], [0.0, 0.0]]], dtype=torch.float64)
    assert EntropyWeights()(members, case.batch).tolist() == [[1.0, 0.0]]
    # Cross-entropies 0 and ln 2: softmax (1/3, 2/3), and their complements.
    found = ConfidenceWeights()(members, case.batch)[0].tolist()
    assert found == pytest.approx([2 / 3, 1 / 3])
    # Two teachers that are sure have no entropy to share.
    assert EntropyWeights()(members[:, [0, 0]], case.batch).tolist() == [[0.5, 0.5]]


def test_learned_weights_move_to_the_nearest_teacher() -> None:
    case = several(random_case(classes=CLASSES))
    assert isinstance(case.teacher, EnsembleOutput)
    case = replace(case, student=Output(case.teacher.members[:, 1]))
    loss: Any = weighted(LearnedWeights, case)().double()
    assert [name for name, _ in loss.named_parameters()] == ["weighting.logits"]
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        loss(case.student, case.teacher, case.batch).backward()
        optimizer.step()
    assert loss.weighting.logits.argmax() == 1
    assert loss.weighting.logits.softmax(0)[1] > 0.9


def mixed(case: Case, partner: list[int], share: list[float]) -> Batch:
    return replace(case.batch, partner=torch.tensor(partner), share=torch.tensor(share))


def test_mixed_samples() -> None:
    case = several(case_of([[0.0] * 3] * 2, [[1.0, 2.0, 0.0]] * 2, [0, 1]))
    assert isinstance(case.teacher, EnsembleOutput)
    batch = mixed(case, [2, UNLABELLED], [0.75, 0.75])
    routing = ClassRouting([0, 1, 2])
    routing.build(3, features.probe(case.student))
    weights = routing(case.teacher.members, batch)
    assert weights[0].tolist() == [0.75, 0.0, 0.25]
    assert weights[1].tolist() == pytest.approx([1 / 12, 0.75 + 1 / 12, 1 / 12])
    log_probs = case.teacher.members[0].log_softmax(-1)
    costs = -(0.75 * log_probs[:, 0] + 0.25 * log_probs[:, 2])
    expected = (1 - costs.softmax(0)) / 2
    found = ConfidenceWeights()(case.teacher.members, batch)[0]
    torch.testing.assert_close(found, expected)


# -- a column -----------------------------------------------------------------------------------


def routed(path: Path, source_samples: int = 4, **arguments: Any) -> ColumnRouting:
    settings: dict[str, Any] = {"column": "language", "values": ["de", "fr"]}
    routing = ColumnRouting(str(path), **{**settings, **arguments})
    output = Output(torch.zeros(2, 3))
    routing.build(2, Probe(output, spec=Spec(source_samples=source_samples)))
    return routing


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text('text,language\na,de\nb,fr\n"c, d",fr\ne,de\n')
    return path


def test_a_column_names_the_teacher(table: Path) -> None:
    batch = Batch(torch.zeros(3, 1), torch.zeros(3).long(), torch.tensor([2, 0, 1]))
    weights = routed(table)(torch.zeros(3, 2, 5), batch)
    assert weights.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    other = routed(table, values=["fr", "de"])(torch.zeros(3, 2, 5), batch)
    assert torch.equal(other, weights.flip(1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"column": "country"}, "has no column 'country'; its columns are text, lang"),
        ({"values": ["de"]}, "values must be 2 different values of the column"),
        ({"values": ["de", "de"]}, "values must be 2 different values"),
        ({"values": ["de", "it"]}, "holds 'fr'; values names the teachers"),
        ({"source_samples": 7}, "has 4 lines below its header, but .* 7 rows"),
        ({"path": Path("missing.csv")}, r"missing\.csv cannot be read as a CSV file"),
    ],
)
def test_bad_columns(table: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        routed(arguments.pop("path", table), **arguments)


# -- teachers -----------------------------------------------------------------------------------


def outputs_of(teacher: Teacher, data: DigitsDataModule) -> tuple[Output, Batch]:
    teacher.prepare(data)
    batch = data.source("train").batch(torch.arange(8), -1)
    return teacher(batch), batch


@pytest.mark.parametrize("name", ["uniform", "entropy", "confidence", "learned"])
def test_caches_replay_several_teachers(name: str, tmp_path: Path) -> None:
    """A full cache of an ensemble, and an ensemble of caches, are the live teachers."""
    data = DigitsDataModule(fraction=0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        members = [ModelTeacher(network=mlp()) for _ in range(3)]
    live = EnsembleTeacher([*members])
    cache_teacher(live, data, tmp_path / "ensemble")
    for number, member in enumerate(members):
        cache_teacher(member, data, tmp_path / str(number))
    caches: list[Teacher] = [CachedTeacher(str(tmp_path / str(n))) for n in range(3)]
    values = []
    for teacher in (
        live,
        CachedTeacher(str(tmp_path / "ensemble")),
        EnsembleTeacher(caches),
    ):
        output, batch = outputs_of(teacher, data)
        case = Case(Output(torch.linspace(0, 1, 80).view(8, 10)), output, batch)
        values.append(weighted(WEIGHTINGS[name], case)()(case.student, output, batch))
    assert values[0] > 0
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values[2], values[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(FixedWeights, [1.0, 0.0]), "each weight must be a finite number"),
        (partial(FixedWeights, [1.0, 2.0]), "one number for each of the 3 teachers"),
        (partial(EntropyWeights, 0.0), "temperature must be a finite number"),
        (partial(ClassRouting, [0, 1]), "one number for each of the 5 classes"),
        (partial(ClassRouting, [0, 1, 2, 3, 0]), "from 0 to 2, got 3"),
    ],
)
def test_bad_weightings(make: Weighting, words: str) -> None:
    case = several(random_case(classes=CLASSES))
    with pytest.raises(UserError, match=words):
        weighted(make, case)()


def test_needs_a_teacher() -> None:
    case = random_case()
    with pytest.raises(UserError, match="MultiTeacher needs a teacher"):
        MultiTeacher().build(features.probe(case.student), None)
    with pytest.raises(UserError, match="temperature must be a finite number"):
        MultiTeacher(temperature=0)
